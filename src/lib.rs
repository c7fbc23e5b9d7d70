//! stablefs
pub mod format;

pub mod cli;
pub mod control;
pub mod disk;
pub mod error;
pub mod fs;
pub mod mount;
pub mod store;
pub mod world;
