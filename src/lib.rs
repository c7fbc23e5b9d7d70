//! stablefs
pub mod format;

pub mod disk;
pub mod store;
pub mod world;
