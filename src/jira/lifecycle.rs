//! A lifecycle call from Jira: its body, judged; and what it does to the records.
//!
//! The signature of a call does not cover its body, so everything in the body that can be compared with
//! something proven is compared (Atlassian reference on lifecycle callbacks; CVE-2021-26073 and its kin).

use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::{
    digest::sha256_hex,
    domain::{
        Actor, AuditEntry, ClientKey, Installation, InstanceUrl, JiraBaseUrl, JiraSites,
        LifecycleEvent, LifecycleEventKind, Link, SharedSecret, UpstreamKind,
        event::{EventStamp, LifecycleChange, SiteFacts},
        installation::{InstallationChange, TokenReused},
        origin::JiraBaseUrlError,
        secret::{NoRandomness, SharedSecretError},
    },
    exchange::parse_json,
    jwt::lifecycle::LifecycleClaims,
    linking::{self, FollowError},
    reject::{Reject, RejectKind},
    store::{StoreFull, Transaction},
};

/// A body that fits its route, app and tenant. Not proven until its token is.
#[derive(Debug)]
pub struct LifecycleCall {
    /// The tenant that the body names.
    pub client_key: ClientKey,
    change: LifecycleChange,
    body_digest: String,
}

/// What the records need to know of the operator's wishes.
#[derive(Clone, Debug)]
pub struct LifecycleRules {
    /// How long a replaced secret counts.
    pub secret_grace: SignedDuration,
    /// Linked to every installation.
    pub auto_link: Vec<InstanceUrl>,
}

/// Why a body is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// A field that Jira always sends is not there.
    #[error("the body has no {0}")]
    FieldMissing(&'static str),
    /// It is about another app.
    #[error("the body is about another app than {expected}")]
    WrongApp {
        /// Ours.
        expected: String,
        /// Theirs. For the log: an unproven text of a stranger.
        unverified: String,
    },
    /// It is about another event than the address.
    #[error("the body's eventType is not {expected}")]
    WrongEvent {
        /// The address's.
        expected: LifecycleEventKind,
    },
    /// No client key at all.
    #[error("the body's clientKey is malformed")]
    ClientKeyMalformed,
    /// A site that may not install us.
    #[error("the body's baseUrl is refused: {0}")]
    Site(#[from] JiraBaseUrlError),
    /// A secret that proves nothing.
    #[error("the body's sharedSecret is refused: {0}")]
    Secret(#[from] SharedSecretError),
}

/// Why an event is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventRefusal {
    /// One token, two bodies, long apart.
    #[error(transparent)]
    TokenReused(#[from] TokenReused),
    /// No room.
    #[error(transparent)]
    Full(#[from] StoreFull),
    /// No secret could be made for a link.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

impl From<FollowError> for EventRefusal {
    fn from(error: FollowError) -> Self {
        match error {
            FollowError::Full(full) => full.into(),
            FollowError::NoRandomness(error) => error.into(),
        }
    }
}

/// The fields that we use; Jira sends more, and may send more still.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    key: Option<String>,
    client_key: Option<String>,
    shared_secret: Option<Zeroizing<String>>,
    base_url: Option<String>,
    display_url: Option<String>,
    event_type: Option<String>,
}

impl LifecycleCall {
    /// Reads a body. Sites that may not install us are refused here, before anybody is asked for a key.
    pub fn parse(
        body: &[u8],
        kind: LifecycleEventKind,
        app_key: &str,
        sites: &JiraSites,
    ) -> Result<Self, Reject> {
        let fields: Body = parse_json(body)?;
        Ok(Self::judge(fields, body, kind, app_key, sites)?)
    }

    fn judge(
        fields: Body,
        body: &[u8],
        kind: LifecycleEventKind,
        app_key: &str,
        sites: &JiraSites,
    ) -> Result<Self, BodyError> {
        let client_key = fields
            .client_key
            .ok_or(BodyError::FieldMissing("clientKey"))?;
        let client_key =
            ClientKey::parse(&client_key).map_err(|_| BodyError::ClientKeyMalformed)?;
        let unverified_key = fields.key.ok_or(BodyError::FieldMissing("key"))?;
        if unverified_key != app_key {
            return Err(BodyError::WrongApp {
                expected: app_key.to_owned(),
                unverified: unverified_key.chars().take(200).collect(),
            });
        }
        if fields
            .event_type
            .ok_or(BodyError::FieldMissing("eventType"))?
            != kind.as_str()
        {
            return Err(BodyError::WrongEvent { expected: kind });
        }
        let change = match kind {
            // Says goodbye, from wherever: Jira does not repeat it, so a site that may not install us any more is
            // heard as well.
            LifecycleEventKind::Uninstalled => LifecycleChange::Uninstalled,
            LifecycleEventKind::Installed => {
                let base_url = fields.base_url.ok_or(BodyError::FieldMissing("baseUrl"))?;
                let base_url = sites.parse(&base_url)?;
                // Only apps without `jwt` authentication get none; nothing may blank a stored one.
                let shared_secret = fields
                    .shared_secret
                    .ok_or(BodyError::FieldMissing("sharedSecret"))?;
                LifecycleChange::Installed(SiteFacts {
                    display_url: fields
                        .display_url
                        .and_then(|text| display_url(&text, &base_url)),
                    base_url,
                    shared_secret: SharedSecret::parse(&shared_secret)?,
                })
            }
        };
        Ok(Self {
            client_key,
            change,
            body_digest: sha256_hex(body),
        })
    }

    /// The event, now that the token is proven to speak for this client key.
    pub fn into_event(self, claims: LifecycleClaims, now: Timestamp) -> LifecycleEvent {
        LifecycleEvent {
            client_key: claims.client_key,
            stamp: EventStamp {
                issued_at: claims.issued_at,
                token_digest: claims.token_digest,
                body_digest: self.body_digest,
                received_at: now,
            },
            change: self.change,
        }
    }
}

/// Changes installation and links as the event says; all of it or nothing.
pub fn apply(
    transaction: &mut Transaction<'_>,
    event: &LifecycleEvent,
    rules: &LifecycleRules,
    request_id: &str,
    peer: IpAddr,
    now: Timestamp,
) -> Result<InstallationChange, EventRefusal> {
    let client_key = &event.client_key;
    let known = transaction.installation(client_key);
    let (mut installation, change) = match (&event.change, &known) {
        (LifecycleChange::Installed(site), known) => Installation::install(
            known.as_deref(),
            client_key,
            &event.stamp,
            site,
            rules.secret_grace,
            now,
        )?,
        (LifecycleChange::Uninstalled, Some(known)) => known.uninstall(&event.stamp, now)?,
        // A site that we never knew, or forgot long ago: there is nothing left to do.
        (LifecycleChange::Uninstalled, None) => return Ok(InstallationChange::Unchanged),
    };
    if change == InstallationChange::Unchanged {
        return Ok(change);
    }
    let twin = (change == InstallationChange::Created)
        .then(|| linking::without_connect(transaction, &installation.base_url))
        .flatten();
    let note = twin.as_ref().map(|twin| {
        let way = twin.upstream.kind().as_str();
        format!(
            "the site was joined before as {} through {way}",
            twin.client_key
        )
    });
    let absorbed = match &twin {
        Some(twin) => absorb(transaction, twin, &mut installation, now)?,
        None => false,
    };
    transaction.put_installation(installation)?;
    if change == InstallationChange::Repeated {
        return Ok(InstallationChange::Unchanged);
    }
    // Instances that the other record's links told must not be linked twice.
    let auto_link: &[InstanceUrl] = match twin {
        Some(_) if !absorbed => &[],
        _ => &rules.auto_link,
    };
    linking::follow(transaction, client_key, change, auto_link, now)?;
    transaction.audit(AuditEntry {
        client_key: Some(client_key.clone()),
        note,
        request_id: Some(request_id.to_owned()),
        peer: Some(peer),
        ..AuditEntry::new(now, Actor::Jira, change.name())
    });
    Ok(change)
}

/// A Forge app that carries a Connect app is installed as both at once, and tells of the Forge part in its own time: while
/// no instance was told of that record it goes, its way stands by, and its links are the new one's. Instances are to know
/// Jira's client key, which they keep when the Forge part ends. Credentials stay in use: an operator chose them.
fn absorb(
    transaction: &mut Transaction<'_>,
    twin: &Installation,
    installation: &mut Installation,
    now: Timestamp,
) -> Result<bool, NoRandomness> {
    let links = transaction.links_of(&twin.client_key);
    if links.iter().any(|link| link.reached) {
        return Ok(false);
    }
    for link in links {
        if link.remove {
            transaction.remove_link(link.id);
            continue;
        }
        let mut link = Link::clone(&link);
        link.client_key = installation.client_key.clone();
        // An attempt under way tells of the other one.
        link.want_installed(Some(SharedSecret::generate()?), now);
        transaction.replace_link(link);
    }
    transaction.remove_installation(&twin.client_key);
    let mut before = twin.upstream.clone();
    if before.kind() == UpstreamKind::Oauth {
        std::mem::swap(&mut installation.upstream, &mut before);
    }
    installation.standby = std::iter::once(before)
        .chain(twin.standby.iter().cloned())
        .collect();
    Ok(true)
}

/// `displayUrl` is for people only, so a strange one is dropped rather than refused. Where it says the same as
/// `baseUrl` it says nothing.
pub fn display_url(text: &str, base_url: &JiraBaseUrl) -> Option<String> {
    let text = text.strip_suffix('/').unwrap_or(text);
    let usable = text.len() <= 255
        && url::Url::parse(text)
            .is_ok_and(|url| matches!(url.scheme(), "https" | "http") && url.host_str().is_some());
    (usable && base_url.as_str() != text).then(|| text.to_owned())
}

impl From<BodyError> for Reject {
    fn from(error: BodyError) -> Self {
        let (kind, code, hint) = match &error {
            BodyError::FieldMissing(_) => (
                RejectKind::Malformed,
                "body_field_missing",
                "Jira always sends it: nothing that is stored was touched",
            ),
            BodyError::WrongApp { .. } => (
                RejectKind::Malformed,
                "app_key_mismatch",
                "app.key must be the key under which the app is installed in Jira",
            ),
            BodyError::WrongEvent { .. } => (
                RejectKind::Malformed,
                "event_type_mismatch",
                "send each event to its own address",
            ),
            BodyError::ClientKeyMalformed => (
                RejectKind::Malformed,
                "client_key_malformed",
                "an honest peer does not send this",
            ),
            BodyError::Site(_) => (
                RejectKind::Forbidden,
                "site_not_allowed",
                "the operator can list the site in jira.extra_sites",
            ),
            BodyError::Secret(_) => (
                RejectKind::Malformed,
                "shared_secret_unusable",
                "nothing that is stored was touched",
            ),
        };
        let internal = match &error {
            BodyError::WrongApp { unverified, .. } => Some(format!("its key is {unverified:?}")),
            _ => None,
        };
        Self {
            internal,
            ..Self::new(kind, code, error.to_string(), hint)
        }
    }
}

impl From<EventRefusal> for Reject {
    fn from(refusal: EventRefusal) -> Self {
        match refusal {
            EventRefusal::TokenReused(error) => Self::new(
                RejectKind::Unauthenticated,
                "token_reused",
                error.to_string(),
                "somebody may have read the token: look for it in the logs of what stands between Jira and this relay",
            ),
            EventRefusal::Full(full) => full.into(),
            EventRefusal::NoRandomness(error) => Self::internal(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn parse(body: &str, kind: LifecycleEventKind) -> Result<LifecycleCall, Reject> {
        LifecycleCall::parse(body.as_bytes(), kind, "app", &JiraSites::default())
    }

    fn body(change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>)) -> String {
        let mut body = serde_json::json!({
            "key": "app", "clientKey": "tenant", "sharedSecret": SECRET, "eventType": "installed",
            "baseUrl": "https://acme.atlassian.net", "displayUrl": "https://jira.acme.example",
            "productType": "jira", "somethingNew": {"a": [1]},
        });
        change(body.as_object_mut().expect("object"));
        body.to_string()
    }

    #[test]
    fn unknown_fields_are_ignored() {
        let call = parse(&body(|_| {}), LifecycleEventKind::Installed).expect("call");
        assert_eq!(call.client_key.as_str(), "tenant");
        let LifecycleChange::Installed(site) = call.change else {
            panic!("installed")
        };
        assert_eq!(
            site.display_url.as_deref(),
            Some("https://jira.acme.example")
        );
    }

    #[test]
    fn everything_that_can_be_compared_is_compared() {
        let code = |body: String| {
            parse(&body, LifecycleEventKind::Installed)
                .expect_err("refused")
                .code
        };
        for field in ["key", "clientKey", "sharedSecret", "eventType", "baseUrl"] {
            assert_eq!(
                code(body(|b| drop(b.remove(field)))),
                "body_field_missing",
                "{field}"
            );
        }
        let set = |field: &'static str, value: &'static str| {
            body(move |b| drop(b.insert(field.to_owned(), value.into())))
        };
        assert_eq!(code(set("key", "other")), "app_key_mismatch");
        assert_eq!(code(set("eventType", "uninstalled")), "event_type_mismatch");
        assert_eq!(code(set("clientKey", "two words")), "client_key_malformed");
        assert_eq!(
            code(set("baseUrl", "https://evilatlassian.net")),
            "site_not_allowed"
        );
        assert_eq!(code(set("sharedSecret", "short")), "shared_secret_unusable");
        assert_eq!(code(set("sharedSecret", "")), "shared_secret_unusable");
        assert_eq!(code("[]".to_owned()), "body_malformed");
        assert_eq!(
            code(format!("{{\"key\":\"app\",{}", &body(|_| {})[1..])),
            "body_malformed",
            "a field twice"
        );
    }

    #[test]
    fn a_refused_secret_is_not_repeated() {
        let body = body(|b| drop(b.insert("sharedSecret".to_owned(), "hunter2".into())));
        let reject = parse(&body, LifecycleEventKind::Installed).expect_err("refused");
        assert!(!format!("{reject:?}").contains("hunter2"));
        let reject =
            parse(r#"{"sharedSecret": 4711}"#, LifecycleEventKind::Installed).expect_err("refused");
        assert!(!format!("{reject:?}").contains("4711"));
    }

    #[test]
    fn uninstalled_needs_no_secret() {
        let body = body(|b| {
            b.remove("sharedSecret");
            b.insert("eventType".to_owned(), "uninstalled".into());
        });
        assert!(parse(&body, LifecycleEventKind::Uninstalled).is_ok());
    }
}
