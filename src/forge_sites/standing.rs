//! How the way to a site through Forge is, for operators: a finding, and what is measured of all.

use std::sync::Arc;

use jiff::Timestamp;

use super::SILENT_AFTER;
use crate::{
    domain::{Installation, JiraBaseUrl, UpstreamKind, upstream::Forge},
    gitlab::probe::{Finding, Verdict},
    metrics::Metrics,
};

/// How a way is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Whether somebody must do something.
    pub verdict: Verdict,
    /// Stable name.
    pub code: &'static str,
    /// One sentence, in which the site is understood.
    pub message: String,
    /// What to do, if it is not in order.
    pub hint: Option<&'static str>,
    /// Since when it is so.
    pub since: Timestamp,
}

/// How the way is that a site is reached by; nothing, if that is another one, or shut.
pub fn standing(known: &Installation, now: Timestamp) -> Option<Standing> {
    let forge = in_use(known)?;
    let told_at = forge.told_at;
    let fail = |code, message, hint, since| Standing {
        verdict: Verdict::Fail,
        code,
        message,
        hint: Some(hint),
        since,
    };
    let Some(token) = &forge.system_token else {
        return Some(fail(
            "forge_token_missing",
            "Forge has sent no token of the app's own, so nothing reaches Jira".to_owned(),
            "the app needs the scope read:app-system-token, and its endpoints auth.appSystemToken: `jira-connect-proxy forge upgrade`, then deploy, and approve it on the site",
            known.installed_at,
        ));
    };
    let end = token.expires_at;
    Some(if let Some(refused) = forge.refused {
        fail(
            "forge_token_refused",
            format!("Jira refuses the app's token, and Forge last called at {told_at:.0}"),
            "look in Jira (Apps > Manage your apps) whether the app is still installed there, and approved; if it is gone, nothing more comes, and the relay leaves the site after forge.gone_after_secs",
            refused.since,
        )
    } else if is_silent(forge, now) {
        fail(
            "forge_silent",
            format!(
                "Forge has sent nothing for long, and its last token ended at {end:.0}: writes wait"
            ),
            "Forge calls every hour, and when anybody opens the app's page in Jira: look whether Atlassian reaches public.url, whether the log has refused calls of forge/scheduled, and in Jira whether the app is still installed; if it is gone, `jira-connect-proxy installations remove KEY`",
            told_at,
        )
    } else if end <= now {
        Standing {
            verdict: Verdict::Warn,
            ..fail(
                "forge_token_awaited",
                format!("Forge's last token ended at {end:.0}: writes wait for the next one"),
                "Forge sends one every hour; opening the app's page in Jira brings one at once",
                end,
            )
        }
    } else {
        Standing {
            verdict: Verdict::Ok,
            code: "forge_site",
            message: format!(
                "Forge's token is good until {end:.0}, it last called at {told_at:.0}"
            ),
            hint: None,
            since: told_at,
        }
    })
}

/// Whether triggers are missing.
pub fn is_silent(forge: &Forge, now: Timestamp) -> bool {
    now.duration_since(forge.told_at) >= SILENT_AFTER
}

impl Standing {
    /// As a line of the doctor's.
    pub fn finding(self, site: &JiraBaseUrl) -> Finding {
        Finding {
            verdict: self.verdict,
            code: self.code,
            message: format!("{site}: {}", self.message),
            hint: self.hint.map(str::to_owned),
        }
    }
}

/// Brings the gauges up to date.
pub fn measure(installations: &[Arc<Installation>], metrics: &Metrics, now: Timestamp) {
    let (mut valid, mut missing, mut silent) = (0, 0, 0);
    let mut first_end = None;
    for forge in installations.iter().filter_map(|known| in_use(known)) {
        silent += i64::from(is_silent(forge, now));
        match forge.valid_token(now) {
            Some(token) => {
                valid += 1;
                let end = token.expires_at;
                first_end = Some(first_end.map_or(end, |first: Timestamp| first.min(end)));
            }
            None => missing += 1,
        }
    }
    for (token, count) in [("valid", valid), ("missing", missing)] {
        let gauge = metrics.forge_installations.with_label_values(&[token]);
        gauge.set(count);
    }
    metrics.forge_silent.set(silent);
    let first_end = first_end.map_or(0, Timestamp::as_second);
    metrics.forge_token_expiry.set(first_end);
}

fn in_use(known: &Installation) -> Option<&Forge> {
    let in_use = known.is_installed() && known.upstream.kind() == UpstreamKind::Forge;
    known.forge().filter(|_| in_use)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        ClientKey, CloudId, Credential, ForgeInstallationId, JiraSites, Upstream,
        installation::SiteAddress, upstream::SystemToken,
    };

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_second(minute * 60).expect("timestamp")
    }

    fn site(token_until: Option<i64>) -> Installation {
        let id = "ari:cloud:ecosystem::installation/0a3a7799-53ae-4a5b-9e7e-03338980abb5";
        let forge = Forge {
            installation_id: ForgeInstallationId::parse(id).expect("id"),
            cloud_id: CloudId::parse("4c822e2f-510f-48b9-b8d2-8419d0932949").expect("id"),
            app_version: None,
            system_token: token_until.map(|minute| SystemToken {
                token: Credential::parse("token").expect("token"),
                expires_at: at(minute),
                from_page: false,
            }),
            told_at: at(0),
            refused: None,
        };
        let address = SiteAddress {
            base_url: JiraSites::default()
                .parse("https://acme.atlassian.net")
                .expect("url"),
            display_url: None,
        };
        let key = ClientKey::parse("tenant").expect("key");
        Installation::new(key, address, Upstream::Forge(forge), at(0))
    }

    #[test]
    fn a_site_is_as_its_token_and_its_silence_are() {
        let code = |site: &Installation, minute| standing(site, at(minute)).map(|f| f.code);
        let known = site(Some(55));
        assert_eq!(code(&known, 54), Some("forge_site"));
        assert_eq!(code(&known, 55), Some("forge_token_awaited"));
        assert_eq!(code(&known, 180), Some("forge_silent"));
        assert_eq!(code(&site(None), 1), Some("forge_token_missing"));
        let mut refused = known.clone();
        if let Upstream::Forge(forge) = &mut refused.upstream {
            *forge = forge.refused(at(2));
        }
        assert_eq!(code(&refused, 3), Some("forge_token_refused"));
        let (left, _) = known.leave(UpstreamKind::Forge, at(1));
        assert_eq!(code(&left, 2), None);
    }

    #[test]
    fn what_is_measured_is_of_all_sites_in_use() {
        let metrics = Metrics::new().expect("metrics");
        let known = site(Some(55));
        let (left, _) = known.leave(UpstreamKind::Forge, at(1));
        let sites = [known, site(Some(57)), site(None), left].map(Arc::new);
        let measured = |minute| {
            measure(&sites, &metrics, at(minute));
            let token = |token| {
                metrics
                    .forge_installations
                    .with_label_values(&[token])
                    .get()
            };
            let end = metrics.forge_token_expiry.get() / 60;
            (
                token("valid"),
                token("missing"),
                metrics.forge_silent.get(),
                end,
            )
        };
        assert_eq!(measured(1), (2, 1, 0, 55));
        assert_eq!(measured(56), (1, 2, 0, 57));
        assert_eq!(measured(180), (0, 3, 3, 0));
    }
}
