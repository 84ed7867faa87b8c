//! Tokens that were used: each is good for one request (`jti`, RFC 7519 section 4.1.7).
//!
//! A token is remembered until nobody would believe it any more anyway, and never forgotten earlier: who has no room left
//! is refused. Each installation has room of its own, so that one which has a lot of tokens made can't fill that of the
//! others. Only tokens that verified get here, so nobody but Forge can use any of it up. The memory does not outlive the
//! process: for the minute and a half that a token of Forge's lives, one that was used before a restart could be used
//! once more after it.

use std::{collections::HashMap, sync::Mutex};

use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};

use super::VerifyError;
use crate::{domain::ForgeInstallationId, lock::lock};

/// Of one installation: tokens live 25 s and are believed for 60 s more, so this is 48 requests per second without end.
const INSTALLATION_MAX: usize = 4096;

/// Of all together: about 20 MiB.
const ALL_MAX: usize = 262_144;

/// How often those that are over are looked for, in seconds.
const SWEEP_EVERY: i64 = 10;

/// What was used, by whom.
#[derive(Default)]
pub(super) struct SpentTokens(Mutex<Spent>);

/// The name of a token (`jti`), in a fixed size whatever it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct TokenId([u8; SHA256_OUTPUT_LEN]);

#[derive(Default)]
struct Spent {
    /// Until when each is remembered, in seconds since 1970.
    by_installation: HashMap<ForgeInstallationId, HashMap<TokenId, i64>>,
    count: usize,
    swept_at: i64,
}

impl TokenId {
    pub(super) fn new(jti: &str) -> Self {
        let mut id = [0; SHA256_OUTPUT_LEN];
        id.copy_from_slice(digest(&SHA256, jti.as_bytes()).as_ref());
        Self(id)
    }
}

impl SpentTokens {
    /// Takes a token that is believed until a second, or says that it was taken before.
    pub(super) fn spend(
        &self,
        installation_id: &ForgeInstallationId,
        token: TokenId,
        until: i64,
        now: i64,
    ) -> Result<(), VerifyError> {
        let mut spent = lock(&self.0);
        let in_hand = spent.of(installation_id);
        let full = in_hand >= INSTALLATION_MAX || spent.count >= ALL_MAX;
        // A full memory is swept once a second and not at each token.
        if now.saturating_sub(spent.swept_at) >= if full { 1 } else { SWEEP_EVERY } {
            spent.sweep(now);
        }
        let tokens = spent.by_installation.get(installation_id);
        if tokens.is_some_and(|tokens| tokens.contains_key(&token)) {
            return Err(VerifyError::Replayed);
        }
        if spent.of(installation_id) >= INSTALLATION_MAX || spent.count >= ALL_MAX {
            return Err(VerifyError::TooManyInvocations);
        }
        spent.count += 1;
        let tokens = spent.by_installation.entry(installation_id.clone());
        tokens.or_default().insert(token, until);
        Ok(())
    }

    /// Forgets a token whose request could not be done.
    pub(super) fn give_back(&self, installation_id: &ForgeInstallationId, token: TokenId) {
        let mut spent = lock(&self.0);
        let tokens = spent.by_installation.get_mut(installation_id);
        if tokens.is_some_and(|tokens| tokens.remove(&token).is_some()) {
            spent.count -= 1;
        }
    }
}

impl Spent {
    fn of(&self, installation_id: &ForgeInstallationId) -> usize {
        let tokens = self.by_installation.get(installation_id);
        tokens.map_or(0, HashMap::len)
    }

    fn sweep(&mut self, now: i64) {
        self.by_installation.retain(|_, tokens| {
            tokens.retain(|_, until| *until > now);
            !tokens.is_empty()
        });
        self.count = self.by_installation.values().map(HashMap::len).sum();
        self.swept_at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn installation(n: u32) -> ForgeInstallationId {
        let text = format!("ari:cloud:ecosystem::installation/00000000-0000-4000-8000-{n:012}");
        ForgeInstallationId::parse(&text).expect("id")
    }

    fn id(n: usize) -> TokenId {
        TokenId::new(&n.to_string())
    }

    #[test]
    fn a_token_is_good_once_per_installation() {
        let spent = SpentTokens::default();
        let (one, other) = (installation(1), installation(2));
        let spend = |by, token, now| spent.spend(by, id(token), NOW + 85, now);
        assert_eq!(spend(&one, 1, NOW), Ok(()));
        assert_eq!(spend(&one, 1, NOW + 84), Err(VerifyError::Replayed));
        assert_eq!(spend(&one, 2, NOW), Ok(()));
        assert_eq!(spend(&other, 1, NOW), Ok(()));
        spent.give_back(&other, id(2));
        spent.give_back(&installation(3), id(1));
        assert_eq!(spend(&one, 1, NOW), Err(VerifyError::Replayed));
        spent.give_back(&one, id(1));
        assert_eq!(spend(&one, 1, NOW), Ok(()));
        assert_eq!(lock(&spent.0).count, 3);
    }

    #[test]
    fn who_has_no_room_is_refused_and_nobody_else_is() {
        let spent = SpentTokens::default();
        let (one, other) = (installation(1), installation(2));
        for n in 0..INSTALLATION_MAX {
            let until = NOW + 85 + i64::from(n % 2 == 0);
            assert_eq!(spent.spend(&one, id(n), until, NOW), Ok(()));
        }
        let spend = |by, token, now| spent.spend(by, id(token), NOW + 170, now);
        let new = INSTALLATION_MAX;
        assert_eq!(spend(&one, new, NOW), Err(VerifyError::TooManyInvocations));
        assert_eq!(spend(&one, 0, NOW), Err(VerifyError::Replayed));
        assert_eq!(spend(&other, new, NOW), Ok(()));
        // Half of them are over, and only those are forgotten.
        let before = spend(&one, new, NOW + 84);
        assert_eq!(before, Err(VerifyError::TooManyInvocations));
        assert_eq!(spend(&one, 1, NOW + 85), Ok(()));
        assert_eq!(spend(&one, 0, NOW + 85), Err(VerifyError::Replayed));
        assert_eq!(lock(&spent.0).count, INSTALLATION_MAX / 2 + 2);
    }

    #[test]
    fn all_together_have_an_end_too() {
        let spent = SpentTokens::default();
        let mut taken = 0;
        for n in 0..70 {
            for token in 0..4000 {
                let spending = spent.spend(&installation(n), id(token), NOW + 85, NOW);
                taken += usize::from(spending.is_ok());
            }
        }
        assert_eq!(taken, ALL_MAX);
        let last = installation(99);
        let refused = spent.spend(&last, id(0), NOW + 85, NOW);
        assert_eq!(refused, Err(VerifyError::TooManyInvocations));
        assert_eq!(spent.spend(&last, id(0), NOW + 170, NOW + 85), Ok(()));
        assert_eq!(lock(&spent.0).count, 1);
    }
}
