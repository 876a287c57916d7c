//! The pods of this node, from one watch of the API server.
#![allow(dead_code, reason = "wired in the next commits")]

mod pod;
