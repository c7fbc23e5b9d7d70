//! cli
pub mod options;
