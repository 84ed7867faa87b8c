//! One connection: parked while it is idle, served while it is not.
//!
//! hyper keeps two buffers and a state machine for each connection, tens of kilobytes for thousands of peers that say
//! nothing. So a connection that has been quiet for a moment is taken apart again, and only its socket waits.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use hyper::{
    body::{Body as _, Frame, Incoming, SizeHint},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{sync::watch, time::Instant};

use super::{
    HungUp,
    socket::{Flow, Socket, Watched},
};
use crate::{
    body::{Body, BodyFault},
    config::LimitsConfig,
    domain::Peer,
    reject::HangUp,
};

const H2_STREAMS_MAX: u32 = 100;

/// Bodies that nobody has read yet, of one connection; hyper's own is four times as much. Enough for 2.5 MB a second
/// at a distance of 100 ms.
const H2_WINDOW_BYTES: u32 = 256 * 1024;

/// Answers that the peer has not taken yet, of one stream.
const H2_SEND_BYTES: usize = 64 * 1024;

/// Streams that a peer opened and took back before we got to them, and streams that we had to break off, before the
/// connection ends: rapid reset (CVE-2023-44487) and its reverse (CVE-2025-8671).
const H2_RESETS_PENDING_MAX: usize = 20;
const H2_RESETS_OF_OURS_MAX: usize = 128;

/// A connection without a request is closed after this; before its first request, after the receive timeout.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// An answer may take as long as this makes it, and the idle time.
const SLOWEST_READER_BYTES_PER_SEC: u64 = 32 * 1024;

/// How often a connection looks whether it is quiet; and, while a request is handled, whether the relay stops.
const LOOK_EVERY: Duration = Duration::from_millis(20);
const LOOK_EVERY_BUSY: Duration = Duration::from_millis(200);

/// How connections are served.
pub(super) struct Protocols {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    receive_timeout: Duration,
}

/// Why a connection ended badly; a metric label.
pub(super) type Failure = &'static str;

impl Protocols {
    pub(super) fn new(limits: &LimitsConfig) -> Self {
        let mut http1 = http1::Builder::new();
        http1
            .timer(TokioTimer::new())
            .header_read_timeout(limits.receive_timeout)
            .max_buf_size(limits.header_max_bytes);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .max_concurrent_streams(H2_STREAMS_MAX)
            .initial_stream_window_size(H2_WINDOW_BYTES)
            .initial_connection_window_size(H2_WINDOW_BYTES)
            .max_send_buf_size(H2_SEND_BYTES)
            .max_pending_accept_reset_streams(H2_RESETS_PENDING_MAX)
            .max_local_error_reset_streams(H2_RESETS_OF_OURS_MAX)
            .max_header_list_size(u32::try_from(limits.header_max_bytes).unwrap_or(u32::MAX))
            .keep_alive_interval(Some(IDLE_TIMEOUT / 2))
            .keep_alive_timeout(limits.receive_timeout);
        Self {
            http1,
            http2,
            receive_timeout: limits.receive_timeout,
        }
    }

    /// HTTP/1.1 until the peer or a stop ends it.
    pub(super) async fn http1<S, H, F>(
        &self,
        mut socket: S,
        peer: Peer,
        handler: &H,
        mut stopping: watch::Receiver<bool>,
    ) -> Result<(), Failure>
    where
        S: Socket,
        H: Fn(Request<Incoming>, Peer) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let mut before = Bytes::new();
        let mut until = Instant::now() + self.receive_timeout;
        loop {
            if before.is_empty() {
                tokio::select! {
                    // An error shows when it is read.
                    _ = socket.readable() => {}
                    () = tokio::time::sleep_until(until) => return Ok(()),
                    _ = stopping.wait_for(|stop| *stop) => return Ok(()),
                }
            }
            // Boxed: a parked connection should not keep the room for it.
            let served = Box::pin(self.until_quiet(socket, before, peer, handler, &stopping));
            match served.await {
                Served::Ended(result) => return result,
                Served::Quiet {
                    socket: idle,
                    rest,
                    had_request,
                } => {
                    (socket, before) = (idle, rest);
                    // A readiness that meant nothing gives no more time.
                    if had_request {
                        until = Instant::now() + IDLE_TIMEOUT;
                    }
                }
            }
        }
    }

    async fn until_quiet<S, H, F>(
        &self,
        socket: S,
        before: Bytes,
        peer: Peer,
        handler: &H,
        stopping: &watch::Receiver<bool>,
    ) -> Served<S>
    where
        S: Socket,
        H: Fn(Request<Incoming>, Peer) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let activity = Arc::new(Activity::new(self.receive_timeout));
        let socket = Watched::new(socket, before, Arc::clone(&activity.flow));
        let service = service_fn(|request| Box::pin(answered(&activity, handler(request, peer))));
        let mut connection = self.http1.serve_connection(TokioIo::new(socket), service);
        let mut look = std::pin::pin!(tokio::time::sleep(LOOK_EVERY));
        let mut told_to_stop = false;
        loop {
            let ended =
                std::future::poll_fn(|context| match Pin::new(&mut connection).poll(context) {
                    Poll::Ready(ended) => Poll::Ready(Some(ended)),
                    Poll::Pending => look.as_mut().poll(context).map(|()| None),
                });
            match ended.await {
                Some(ended) => {
                    return Served::Ended(ended.map_err(|error| failure(&error)));
                }
                None if *stopping.borrow() && !told_to_stop => {
                    told_to_stop = true;
                    Pin::new(&mut connection).graceful_shutdown();
                }
                None if activity.is_over() => return Served::Ended(Ok(())),
                None if activity.is_quiet() && !told_to_stop => {
                    let parts = connection.into_parts();
                    // Also an empty one would hold on to its whole buffer.
                    let rest = Some(parts.read_buf).filter(|rest| !rest.is_empty());
                    return Served::Quiet {
                        socket: parts.io.into_inner().into_inner(),
                        rest: rest.unwrap_or_default(),
                        had_request: activity.flow.bytes_read() > 0,
                    };
                }
                None => {}
            }
            look.as_mut().reset(Instant::now() + activity.next_look());
        }
    }

    /// HTTP/2 until the peer or a stop ends it.
    pub(super) async fn http2<S, H, F>(
        &self,
        socket: S,
        peer: Peer,
        handler: &H,
        stopping: watch::Receiver<bool>,
    ) -> Result<(), Failure>
    where
        S: Socket,
        H: Fn(Request<Incoming>, Peer) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let activity = Arc::new(Activity::new(self.receive_timeout));
        let (active, handler) = (Arc::clone(&activity), handler.clone());
        let service = service_fn(move |request| {
            let (active, answer) = (Arc::clone(&active), handler(request, peer));
            async move { answered(&active, answer).await }
        });
        let connection = self.http2.serve_connection(TokioIo::new(socket), service);
        let mut connection = std::pin::pin!(connection);
        let mut look = std::pin::pin!(tokio::time::sleep(LOOK_EVERY));
        let mut told_to_stop = false;
        loop {
            let ended = std::future::poll_fn(|context| match connection.as_mut().poll(context) {
                Poll::Ready(ended) => Poll::Ready(Some(ended)),
                Poll::Pending => look.as_mut().poll(context).map(|()| None),
            });
            match ended.await {
                Some(ended) => return ended.map_err(|error| failure(&error)),
                None if *stopping.borrow() && !told_to_stop => {
                    told_to_stop = true;
                    connection.as_mut().graceful_shutdown();
                }
                None if activity.is_over() => return Ok(()),
                None => {}
            }
            look.as_mut().reset(Instant::now() + activity.next_look());
        }
    }
}

/// How a served connection comes back.
enum Served<S> {
    Ended(Result<(), Failure>),
    /// Nothing is under way.
    Quiet {
        socket: S,
        /// Read, and not understood yet.
        rest: Bytes,
        had_request: bool,
    },
}

fn failure(error: &hyper::Error) -> Failure {
    tracing::debug!("connection ended: {error}");
    if error.is_user() {
        "pushed_back"
    } else {
        "http"
    }
}

/// What happens on a connection. hyper's own timers begin with the first byte of a request; a peer that sends none
/// would hold its permit for ever.
struct Activity {
    flow: Arc<Flow>,
    /// Requests that are being handled.
    handled: AtomicUsize,
    /// Answers that hyper has not taken whole.
    answers: AtomicUsize,
    /// What had been read when the last answer was made.
    read_by_then: AtomicU64,
    /// Without a request being handled, the connection ends then. A short std lock.
    ends_at: Mutex<Instant>,
}

impl Activity {
    fn new(first_request_timeout: Duration) -> Self {
        Self {
            flow: Arc::default(),
            handled: AtomicUsize::new(0),
            answers: AtomicUsize::new(0),
            read_by_then: AtomicU64::new(0),
            ends_at: Mutex::new(Instant::now() + first_request_timeout),
        }
    }

    fn is_idle(&self) -> bool {
        self.handled.load(Ordering::Relaxed) == 0
    }

    fn next_look(&self) -> Duration {
        if self.is_idle() {
            LOOK_EVERY
        } else {
            LOOK_EVERY_BUSY
        }
    }

    /// Too long without a request, or with an answer that nobody reads.
    fn is_over(&self) -> bool {
        self.is_idle() && Instant::now() >= *self.ends_at()
    }

    /// Nothing is being handled or written, and nothing has come since the last answer.
    fn is_quiet(&self) -> bool {
        self.is_idle()
            && self.answers.load(Ordering::Relaxed) == 0
            && !self.flow.write_stuck()
            && self.flow.bytes_read() == self.read_by_then.load(Ordering::Relaxed)
    }

    fn ends_at(&self) -> MutexGuard<'_, Instant> {
        self.ends_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts one up, and down when dropped.
struct Counted(Arc<Activity>, fn(&Activity) -> &AtomicUsize);

impl Counted {
    fn new(activity: &Arc<Activity>, which: fn(&Activity) -> &AtomicUsize) -> Self {
        which(activity).fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(activity), which)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.1(&self.0).fetch_sub(1, Ordering::Relaxed);
    }
}

/// Handles one request, with an eye on its answer.
async fn answered(
    activity: &Arc<Activity>,
    answer: impl Future<Output = Response<Body>>,
) -> Result<Response<WatchedBody>, HungUp> {
    let handled = Counted::new(activity, |activity| &activity.handled);
    let answer = answer.await;
    if answer.extensions().get::<HangUp>().is_some() {
        return Err(HungUp);
    }
    let length = answer.body().size_hint().exact().unwrap_or_default();
    let reading = Duration::from_secs(length / SLOWEST_READER_BYTES_PER_SEC);
    *activity.ends_at() = Instant::now() + IDLE_TIMEOUT + reading;
    let read = activity.flow.bytes_read();
    activity.read_by_then.store(read, Ordering::Relaxed);
    let open = Counted::new(activity, |activity| &activity.answers);
    drop(handled);
    Ok(answer.map(|body| WatchedBody { body, open }))
}

/// An answer's body, open until hyper lets go of it.
struct WatchedBody {
    body: Body,
    open: Counted,
}

impl hyper::body::Body for WatchedBody {
    type Data = Bytes;
    type Error = BodyFault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        // Nobody knew how long this would take: whoever took the last part gets time for the next.
        if let Body::Made(_) = &self.body
            && frame.is_ready()
        {
            *self.open.0.ends_at() = Instant::now() + IDLE_TIMEOUT;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
