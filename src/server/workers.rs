//! Threads that serve connections, one for each core up to a few, each with a runtime of its own.
//!
//! A request then stays on one thread, from the instance's connection to that towards Jira (see `client`): work that
//! moves between cores wakes threads and shares locks at each step, which costs more than it wins where each step takes
//! microseconds.

use std::{io, sync::Arc, thread::JoinHandle};

use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};

/// A core serves some 20,000 calls a second, and each worker keeps connections of its own to every peer.
const WORKERS_MAX: usize = 4;

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

    /// With the one that has the fewest connections.
    pub(super) fn seat(&self) -> Option<Seat> {
        let worker = self.0.iter().min_by_key(|w| Arc::strong_count(&w.load))?;
        Some(Seat {
            runtime: worker.runtime.clone(),
            _load: Arc::clone(&worker.load),
        })
    }
}

impl Worker {
    fn start(number: usize) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name(format!("serve-{number}"))
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
