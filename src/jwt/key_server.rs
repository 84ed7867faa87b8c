//! One question to a server of public keys: asked in the same way, and bounded in the same way, whatever the keys are for.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::Full;

use crate::client::{Client, Destination};

/// Somebody waits for the answer: how long Jira waits for us is not documented, and the whole answer should take less
/// than 3 s; Forge waits 5 s where it sends an event.
pub(super) const FETCH_TIMEOUT: Duration = Duration::from_millis(2500);

/// Whatever the server answers, or why there is no answer. The address is the operator's, never a token's; redirects
/// are answers.
pub(super) async fn ask(
    client: &Client,
    url: &str,
    answer_max_bytes: usize,
) -> Result<Response<Bytes>, String> {
    let request = Request::builder()
        .method(Method::GET)
        .uri(url)
        .body(Full::new(Bytes::new()))
        .map_err(|error| error.to_string())?;
    client
        .send(
            Destination::Configured,
            request,
            FETCH_TIMEOUT,
            answer_max_bytes,
        )
        .await
        .map_err(|error| error.to_string())
}
