//! `public_keys/<kid>`: where instances fetch what they verify us with.
//!
//! An instance whose proxy URL is set looks here for every key, also for Atlassian's own, so those are passed on
//! (GitLab `lib/atlassian/jira_connect/jwt/asymmetric.rb`).

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;

use super::{Public, cacheable};
use crate::{
    domain::KeyId,
    exchange::{Arrival, typed},
    jwt::{VerifyError, install_keys::Purpose},
    reject::Reject,
};

/// Keys never change under their kid, but a retired one should be gone soon.
///
/// A shared cache would answer in our place, and we would not see who came for the key.
const CACHEABLE: &str = "private, max-age=60";

pub(super) async fn serve(
    public: &Public,
    unverified_kid: &str,
    arrival: &Arrival,
) -> Result<Response<Full<Bytes>>, Reject> {
    let count = |owner: &str| {
        public
            .metrics
            .public_key_requests
            .with_label_values(&[owner])
            .inc();
    };
    let unknown = || {
        count("unknown");
        Reject::not_found("public key of that name")
    };
    let kid = KeyId::parse(unverified_kid).map_err(|_| unknown())?;
    let bait = public.key_fetches.bite(&kid, arrival.peer.ip());
    let probed = bait.then(|| public.signer.active_public_pem()).flatten();
    let pem = match probed.or_else(|| public.signer.public_pem(&kid)) {
        Some(pem) if bait => {
            count("probe");
            pem.to_string()
        }
        Some(pem) => {
            count("ours");
            public.key_fetches.record(&kid, arrival.peer.ip());
            pem.to_string()
        }
        None => match public
            .verifier
            .keys()
            .find(&kid, Purpose::PassOn, arrival.now)
            .await
        {
            Ok(key) => {
                count("atlassian");
                key.public_pem.clone()
            }
            // To the caller it makes no difference: GitLab ignores the status and takes any body for a key.
            Err(error @ VerifyError::KeysUnavailable { .. }) => {
                count("unavailable");
                return Err(Reject {
                    internal: Some(error.to_string()),
                    ..Reject::not_found(
                        "public key of that name here, and Atlassian's key server can't be asked",
                    )
                });
            }
            Err(_) => return Err(unknown()),
        },
    };
    cacheable(
        CACHEABLE,
        typed(StatusCode::OK, "text/plain; charset=utf-8", pem),
    )
}
