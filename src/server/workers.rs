//! Threads that serve connections, one for each core up to a few, each with a runtime of its own.
//!
//! A request then stays on one thread, from the instance's connection to that towards Jira (see `client`): work that
//! moves between cores wakes threads and shares locks at each step, which costs more than it wins where each step takes
//! microseconds.

use std::{io, sync::Arc, thread::JoinHandle, time::Duration};

use futures_util::future::join_all;
use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};

use crate::reject::{Reject, RejectKind};

/// A core serves some 20,000 calls a second, and each worker keeps connections of its own to every peer.
const WORKERS_MAX: usize = 4;

/// A worker that does so much at once that it comes to nothing else is as good as stuck. Less than what watches the
/// relay waits for an answer.
const TURN_MAX: Duration = Duration::from_secs(3);

/// Ends them when dropped, with whatever they still do.
pub struct Workers(Vec<Worker>);

struct Worker {
    runtime: Handle,
    /// Held by each connection that is served here.
    load: Arc<()>,
    /// Taken when it is to end.
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

/// A connection's place with a worker.
pub(super) struct Seat {
    /// Where its task runs.
    pub(super) runtime: Handle,
    _load: Arc<()>,
}

/// Finds out whether they still turn.
#[derive(Clone)]
pub struct Turning(Vec<Handle>);

/// Workers that do not: their connections hang, and new ones may come to them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} {} stuck", .0.join(", "), if .0.len() == 1 { "is" } else { "are" })]
pub struct Stuck(Vec<String>);

impl Workers {
    /// Starts them.
    ///
    /// # Errors
    /// The system has no threads or files left.
    pub fn start() -> io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = (0..cores.min(WORKERS_MAX)).map(Worker::start);
        workers.collect::<io::Result<Vec<_>>>().map(Self)
    }

    /// For whoever wants to know whether they turn.
    pub fn turning(&self) -> Turning {
        Turning(self.0.iter().map(|w| w.runtime.clone()).collect())
    }

    /// With the one that has the fewest connections.
    pub(super) fn seat(&self) -> Option<Seat> {
        let worker = self.0.iter().min_by_key(|w| Arc::strong_count(&w.load))?;
        Some(Seat {
            runtime: worker.runtime.clone(),
            _load: Arc::clone(&worker.load),
        })
    }
}

impl Turning {
    /// Has each of them do nothing, and waits a while until it is done.
    ///
    /// # Errors
    /// Those that did not come to it.
    pub async fn check(&self) -> Result<(), Stuck> {
        self.check_within(TURN_MAX).await
    }

    async fn check_within(&self, patience: Duration) -> Result<(), Stuck> {
        let turns = self
            .0
            .iter()
            .enumerate()
            .map(|(number, runtime)| async move {
                // One that has ended, at a stop, has no connections.
                let turn = tokio::time::timeout(patience, runtime.spawn(async {}));
                turn.await.is_err().then(|| name(number))
            });
        let stuck: Vec<_> = join_all(turns).await.into_iter().flatten().collect();
        if stuck.is_empty() {
            Ok(())
        } else {
            Err(Stuck(stuck))
        }
    }
}

impl Worker {
    fn start(number: usize) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name(name(number))
            .spawn(move || {
                // An error is a stop too.
                let _ = runtime.block_on(stopped);
                runtime.shutdown_background();
            })?;
        Ok(Self {
            runtime: handle,
            load: Arc::default(),
            running: Some((stop, thread)),
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            drop(stop);
            // A panic of its own was told on standard error.
            let _ = thread.join();
        }
    }
}

/// A worker's thread, as the system shows it.
fn name(number: usize) -> String {
    format!("serve-{number}")
}

impl From<Stuck> for Reject {
    fn from(stuck: Stuck) -> Self {
        Self::new(
            RejectKind::Unavailable,
            "worker_stuck",
            format!("{stuck}: what is connected there gets no answer"),
            "restart the relay, and report it with the log",
        )
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_worker_that_is_stuck_is_named_and_the_others_are_not() {
        let workers = Workers((0..2).map(|n| Worker::start(n).expect("thread")).collect());
        let turning = workers.turning();
        assert_eq!(turning.check_within(Duration::from_secs(60)).await, Ok(()));

        let (release, held) = mpsc::channel::<()>();
        let (reached, hangs) = oneshot::channel();
        turning.0[1].spawn(async move {
            let _ = reached.send(());
            let _ = held.recv();
        });
        hangs.await.expect("it hangs");
        let stuck = turning.check_within(Duration::from_secs(1)).await;
        let stuck = stuck.expect_err("one hangs");
        assert_eq!(stuck.to_string(), "serve-1 is stuck");
        let reject = Reject::from(stuck);
        assert_eq!(
            (reject.kind, reject.code),
            (RejectKind::Unavailable, "worker_stuck")
        );

        drop(release);
        assert_eq!(turning.check_within(Duration::from_secs(60)).await, Ok(()));
        drop(workers);
        assert_eq!(turning.check_within(Duration::from_secs(60)).await, Ok(()));
    }
}
