//! Short std locks.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Takes a lock that is never held over an await. What a panic left behind is as good as it was: all that is done
/// under such a lock is done whole or not at all.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
