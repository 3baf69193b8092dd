//! Brain.
