//! Every spelling.
