//! What went wrong, as a site is told: without what is no business of a site's, and with what its admins can do.
//!
//! Where a name leads inside the operator's network is none, nor is who came for a key. The log, traces and the admin
//! API have it all. A Jira admin has no configuration of the relay's, and no commands.

use std::borrow::Cow;

use crate::{domain::link::DeliveryProblem, gitlab::probe::Finding, reject::Reject};

const PRIVATE: &str = "its name leads to an address that is not public";
const PRIVATE_HINT: &str =
    "if the instance lives in a private network, the operator of the relay can allow that";
const ALLOWED_HINT: &str =
    "the operator of the relay says which instances may be connected: ask for this one";

/// A refusal of what a site asked for. The log has the cause as it was.
pub(super) fn reject(reject: Reject) -> Reject {
    let (message, hint) = words(reject.code, &reject.message, &reject.hint);
    if message == reject.message && hint == reject.hint {
        return reject;
    }
    let (message, hint) = (message.into_owned(), hint.into_owned());
    Reject {
        internal: reject.internal.or(Some(reject.message)),
        message,
        hint,
        ..reject
    }
}

/// What a check or a look found.
pub(super) fn finding(finding: Finding) -> Finding {
    let hint = finding.hint.as_deref();
    let (message, hint) = words(finding.code, &finding.message, hint.unwrap_or_default());
    let hint = (!hint.is_empty()).then(|| hint.into_owned());
    Finding {
        message: message.into_owned(),
        hint,
        ..finding
    }
}

/// Why something was not delivered.
pub(super) fn problem(problem: &DeliveryProblem) -> DeliveryProblem {
    let (message, hint) = words(&problem.code, &problem.message, &problem.hint);
    DeliveryProblem {
        message: message.into_owned(),
        hint: hint.into_owned(),
        ..problem.clone()
    }
}

fn words<'a>(code: &str, message: &'a str, hint: &'a str) -> (Cow<'a, str>, Cow<'a, str>) {
    let (mut told, mut cure) = (Cow::Borrowed(message), Cow::Borrowed(hint));
    match code {
        "address_not_public" | "instance_address_not_public" => {
            (told, cure) = (PRIVATE.into(), PRIVATE_HINT.into());
        }
        "connection_failed" => told = without_address(message),
        "unauthorized_key_fetched" => {
            let fetched = hint.strip_prefix("the key was fetched by ");
            let rest = fetched.and_then(|fetched| fetched.split_once("; "));
            cure = rest.map_or(hint, |(_, rest)| rest).into();
        }
        "instance_not_https" => cure = "connect its https address".into(),
        "instance_not_allowed" | "not_allowed" => cure = ALLOWED_HINT.into(),
        "instance_secret" => {
            cure =
                "let the relay give it a new one: \"Try again\" at the instance in the list".into();
        }
        "link_exists" => cure = "look for it in the list".into(),
        "link_unknown" => cure = "load the list again".into(),
        "link_being_purged" => cure = "wait until it is gone from the list".into(),
        "link_being_removed" => {
            cure = "wait until it is gone from the list, or add it again".into()
        }
        _ => {}
    }
    (told, cure)
}

/// A name was typed, an address was dialled (`client::DialError::Tcp`).
fn without_address(message: &str) -> Cow<'_, str> {
    const SPLIT: &str = " can't be reached";
    let (name, cause) = message.split_once(SPLIT).unwrap_or(("it", ""));
    let (dialled, cause) = cause.split_once(": ").unwrap_or((cause, ""));
    // Kept by a relay that knew no better: what stands in front is the address.
    let name = if dialled.is_empty() { "it" } else { name };
    match cause {
        "" => format!("{name}{SPLIT}").into(),
        cause => format!("{name}{SPLIT}: {cause}").into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_learns_the_address_behind_a_name() {
        for (message, told) in [
            (
                "gitlab.example.com can't be reached at 10.1.2.3:443: Connection refused",
                "gitlab.example.com can't be reached: Connection refused",
            ),
            (
                "gitlab.example.com can't be reached at [fd00::1]:443: No route to host",
                "gitlab.example.com can't be reached: No route to host",
            ),
            // As earlier versions kept it.
            (
                "10.1.2.3:443 can't be reached: Connection refused",
                "it can't be reached: Connection refused",
            ),
        ] {
            assert_eq!(words("connection_failed", message, "").0, told);
        }
        let hint = "the key was fetched by 10.1.2.3; the instance must see its address; and more";
        assert_eq!(
            words("unauthorized_key_fetched", "", hint).1,
            "the instance must see its address; and more"
        );
    }
}
