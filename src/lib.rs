//! stablefs
pub mod format;

pub mod disk;
pub mod mount;
pub mod store;
pub mod world;
