//! The store: items and file data, made durable.
pub mod error;
pub mod tree;
pub use error::StoreError;

use std::sync::Arc;

/// Value of an item.
pub type Value = Arc<[u8]>;
