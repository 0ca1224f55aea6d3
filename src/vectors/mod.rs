//! From a pooled hidden state to what a client asked for: truncate, normalise, quantise, encode, in that order, always.
