//! The body of an answer.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::stream::Stream;
use http_body_util::Full;
use hyper::body::{Frame, Incoming, SizeHint};

/// Why a body ends before its end. Its reader only sees that the connection breaks.
pub type BodyFault = Box<dyn std::error::Error + Send + Sync>;

/// The body of an answer: made here, or passed on as it comes in.
pub enum Body {
    /// Ours.
    Whole(Full<Bytes>),
    /// A peer's.
    Streamed(Incoming),
    /// Ours, made as it is read.
    Made(Pin<Box<dyn Stream<Item = Result<Bytes, BodyFault>> + Send>>),
}

impl From<Full<Bytes>> for Body {
    fn from(whole: Full<Bytes>) -> Self {
        Self::Whole(whole)
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = BodyFault;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFault>>> {
        match self.get_mut() {
            Self::Whole(whole) => Pin::new(whole)
                .poll_frame(context)
                .map_err(|never| match never {}),
            Self::Streamed(incoming) => Pin::new(incoming).poll_frame(context).map_err(Into::into),
            Self::Made(stream) => stream.as_mut().poll_next(context).map_ok(Frame::data),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(whole) => whole.is_end_stream(),
            Self::Streamed(incoming) => incoming.is_end_stream(),
            Self::Made(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(whole) => whole.size_hint(),
            Self::Streamed(incoming) => incoming.size_hint(),
            Self::Made(_) => SizeHint::default(),
        }
    }
}
