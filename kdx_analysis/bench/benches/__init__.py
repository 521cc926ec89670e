"""The benches: each file declares some on one question, with the plain implementation in it."""
