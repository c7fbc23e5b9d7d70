//! Opening a volume as its owner: from the first look at the heartbeats to a heart that beats.
//!
//! *Guarantees*: nothing but heartbeats is written before the volume is ours; if it is not to be opened after all, nobody has to
//! wait for us. *Assumes*: the replicas are locked, and opened in such a way that nothing is written before [`Opening::claim`].
//! *Fails when*: another owner lives or is faster, or has written since the replicas were examined: [`StoreError::Refused`].
//! *Order*: [`Opening::look`] → examine and choose → [`Opening::claim`] → recovery → [`Opening::into_heart`] or
//! [`Opening::give_up`]. *Not here*: what is looked at (`watch`), what is written (`beat`).

use super::host::Session;
use super::watch::{Patience, Seen, Spot, spots_of, watch_present};
use super::{Beating, Heart, Use, machine_clock};
use crate::disk::Mirror;
use crate::disk::backing::Backing;
use crate::disk::file::Mode;
use crate::store::recover::{self, Found, Present};
use crate::store::{Store, StoreError};
use crate::sync::Mutex;
use crate::volume::{EXAMINE_WAIT, close_all, open_paths, refused};
use crate::world::World;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Whether anybody uses the replicas that stand at `paths`, which are to be written over.
///
/// # Errors
/// Somebody does.
pub fn check_unused(paths: &[PathBuf], world: &dyn World) -> Result<(), StoreError> {
    let (mut present, _no_replicas) = open_paths(paths, Mode::ReadOnly)?;
    let backings: Vec<Arc<dyn Backing>> = present.iter().map(|one| one.backing.clone()).collect();
    let seen = watch_present(&Session::begin(world), &mut present, Patience::Wait);
    close_all(&backings);
    seen.map(drop)
}

fn newest_of(found: &Found) -> u64 {
    found.roots.first().map_or(0, |(_, root)| root.version)
}

/// A volume that is being opened.
pub struct Opening {
    heart: Arc<Heart>,
    seen: Seen,
    spots: Vec<Spot>,
    /// Versions of the newest roots there.
    newest: Vec<u64>,
    usage: Use,
    claimed: Mutex<Option<Arc<Mirror>>>,
}

impl Opening {
    /// Look who uses the replicas that are `present`, at least one, and wait for those who may live. `deadline` is that of
    /// one request.
    ///
    /// # Errors
    /// Another host uses them.
    pub fn look(
        present: &mut [Present],
        usage: Use,
        patience: Patience,
        deadline: Duration,
        world: &Arc<dyn World>,
    ) -> Result<Opening, StoreError> {
        let session = Session::begin(&**world);
        let seen = watch_present(&session, present, patience)?;
        let volume = present[0].found.label.volume;
        let heart = Heart::new(session, volume, usage, deadline, world.clone(), machine_clock());
        let newest = present.iter().map(|one| newest_of(&one.found)).collect();
        let spots = spots_of(present);
        Ok(Opening { heart: Arc::new(heart), seen, spots, newest, usage, claimed: Mutex::new(None) })
    }

    /// The volume is ours from now on. `store` has not written anything.
    ///
    /// # Errors
    /// Another one was faster, or wrote meanwhile.
    pub fn claim(&self, store: &Store) -> Result<(), StoreError> {
        *self.claimed.lock() = Some(store.mirror().clone());
        self.heart.claim(store.mirror(), &self.seen)?;
        if self.usage == Use::Write && self.seen.elsewhere {
            self.check_unwritten()?;
        }
        Ok(())
    }

    /// Whether the newest root of each is still the one from which was chosen.
    fn check_unwritten(&self) -> Result<(), StoreError> {
        for (spot, newest) in self.spots.iter().zip(&self.newest) {
            let Ok(found) = recover::examine(&*spot.backing, EXAMINE_WAIT) else { continue };
            if newest_of(&found) > *newest {
                return refused(format!(
                    "{}: another host has written to this volume just now; see that it is unmounted there, then try again",
                    spot.path
                ));
            }
        }
        Ok(())
    }

    /// The replica at `spot`, which is none of those looked at, is to be written over by the volume that is ours.
    ///
    /// # Errors
    /// Another host uses it.
    pub fn admit(&self, spot: Spot) -> Result<(), StoreError> {
        self.heart.admit(spot).map(drop)
    }

    /// Beat on `mirror`, for as long as what is given back lives.
    ///
    /// # Errors
    /// There is no thread for it.
    pub fn beat_for(&self, mirror: &Arc<Mirror>) -> Result<Beating, StoreError> {
        Beating::start(self.heart.clone(), mirror.clone(), |_| ())
    }

    /// Ours.
    pub fn into_heart(self) -> Arc<Heart> {
        self.heart
    }

    /// It was not opened after all, or is closed again.
    pub fn give_up(self) {
        let Some(mirror) = self.claimed.lock().take() else { return };
        if self.heart.taken().is_none()
            && let Err(error) = self.heart.release(&mirror)
        {
            ::log::debug!("the heartbeat was not taken back: {error}");
        }
        mirror.set_guard(None);
    }
}
