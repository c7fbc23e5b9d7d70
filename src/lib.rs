//! stablefs
pub mod format;

pub mod disk;
