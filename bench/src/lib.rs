//! Loads and costs.
