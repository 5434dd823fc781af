// SPDX-License-Identifier: Apache-2.0
//! The threads that may wait: how many there are, and how many of them may wait
//! for the host at a time. What they do is their callers' business.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

/// Threads that may wait for file systems and mounts at a time.
pub const THREADS: usize = 4;

/// One thread always stays for what only the guest's kernel has a part in: a
/// host that does not answer keeps no other container from being removed.
static HOST: Semaphore = Semaphore::const_new(THREADS - 1);

/// The work has panicked.
#[derive(Debug, thiserror::Error)]
#[error("Internal task ended early")]
pub struct Lost;

/// Runs on the blocking pool what may take as long as the host likes: mounts,
/// roots and files on shared file systems, reclaim.
///
/// # Errors
/// [`Lost`].
pub async fn at_host_pace<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Lost> {
    let result = Arc::new(Mutex::new(None));
    let place = Arc::clone(&result);
    run(Box::new(move || {
        let done = work();
        *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(done);
    }))
    .await;
    let mut place = result.lock().unwrap_or_else(PoisonError::into_inner);
    place.take().ok_or(Lost)
}

/// All work is of one type here: the pool's own code would be there once for
/// each, and it is long.
async fn run(work: Box<dyn FnOnce() + Send>) {
    // Never closed: there always is a turn.
    let turn = HOST.acquire().await;
    let ended = spawn_blocking(move || {
        // Held by the thread, not by the caller, who may go away.
        let _turn = turn;
        work();
    });
    // A panic leaves no result, which tells.
    let _ = ended.await;
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, RwLock};
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_host_that_does_not_answer_leaves_a_thread() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(THREADS)
            .build()
            .unwrap();
        let host = Arc::new(RwLock::new(()));
        let silence = host.write().unwrap();
        let waiting: Vec<_> = (0..2 * THREADS)
            .map(|_| {
                let host = host.clone();
                runtime.spawn(at_host_pace(move || drop(host.read().unwrap())))
            })
            .collect();
        runtime.block_on(async {
            tokio::task::yield_now().await;
            let other = tokio::time::timeout(Duration::from_secs(20), spawn_blocking(|| ()));
            let other = other.await;
            drop(silence);
            assert!(other.is_ok(), "no thread was left");
            for work in waiting {
                work.await.unwrap().unwrap();
            }
        });
    }
}
