//! A mounted volume on simulated disks, inside an execution.
//!
//! Goal: what every scenario needs. Method: the simulator's bench, the real store and filesystem, with or without the
//! store's own threads.

use stablefs::disk::sim::{CrashPlan, Random};
use stablefs::fs::api::StoreApi;
use stablefs::fs::{Caller, Filesystem, FsOptions};
use stablefs::simulate::driver::Driver;
use stablefs::simulate::generate::Weights;
use stablefs::simulate::{Bench, Setup};
use stablefs::store::engine::Engine;
use stablefs::store::{Store, StoreOptions};
use std::sync::Arc;
use std::time::Duration;

/// Who does everything.
pub const CALLER: Caller = Caller { uid: 0, gid: 0, umask: 0, lacks_fsetid: false };

/// A mounted volume.
pub struct Volume {
    /// Its disks.
    pub bench: Bench,
    /// Its store.
    pub store: Arc<Store>,
    /// Its filesystem.
    pub fs: Arc<Filesystem>,
    engine: Option<Engine>,
}

/// A volume of two small disks.
pub fn setup(blocks: u64) -> Setup {
    let store = StoreOptions {
        resync_rate: 0,
        read_only: false,
        pages_max: 64,
        pages_start: 16,
        items_bytes_max: 64 << 10,
        placed_max: 512,
        cache_nodes: 512,
        window: 2,
    };
    Setup { blocks, zone_blocks: 256, replicas: 2, grows: false, weights: Weights::usual(false), store }
}

impl Volume {
    /// An empty volume, mounted.
    pub fn new(seed: u64, blocks: u64) -> Volume {
        let mut bench = Bench::with(seed, setup(blocks), Random::new(seed));
        let (store, _) = bench.open(&[0, 1], false).expect("a fresh volume opens");
        let store = Arc::new(store);
        let fs = Filesystem::new(store.clone() as Arc<dyn StoreApi>, FsOptions::default()).expect("it mounts");
        Volume { bench, store, fs: Arc::new(fs), engine: None }
    }

    /// Start the store's own threads.
    pub fn start_engine(&mut self) {
        self.engine = Some(Engine::start(&self.store, Duration::from_secs(5)).expect("threads start"));
    }

    /// Stop the store's own threads, if they run.
    pub fn stop_engine(&mut self) {
        if let Some(engine) = self.engine.take() {
            engine.stop();
        }
    }

    /// Let the store go, as at the death of the daemon.
    pub fn abandon(mut self) -> Bench {
        self.stop_engine();
        let Volume { bench, store, fs, .. } = self;
        drop(fs);
        assert_eq!(Arc::strong_count(&store), 1, "a thread has not ended");
        bench
    }
}

/// Cut the power, keep nothing that no flush covered, open again.
pub fn reopen(bench: &mut Bench) -> Driver {
    bench.disks = bench.power.revive(CrashPlan::DropAll);
    bench.mount().unwrap_or_else(|error| panic!("opening again: {error}"))
}
