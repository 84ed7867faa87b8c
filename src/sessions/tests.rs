use super::*;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).expect("second")
}

fn site(name: &str) -> ClientKey {
    ClientKey::parse(name).expect("client key")
}

fn sessions() -> Sessions {
    let lifetimes = PageLifetimes {
        invitation: SignedDuration::from_secs(300),
        idle: SignedDuration::from_secs(1800),
        session: SignedDuration::from_hours(8),
    };
    Sessions::new(lifetimes).expect("randomness")
}

fn open(sessions: &Sessions, name: &str, now: Timestamp) -> (Proof, Arc<Session>) {
    let invitation = sessions.invite(site(name), now);
    sessions
        .open(invitation.ticket.expose(), now)
        .expect("opens")
}

#[test]
fn an_invitation_opens_once_and_can_be_looked_at_before() {
    let sessions = sessions();
    let invitation = sessions.invite(site("acme"), at(0));
    assert_eq!(invitation.expires_at, at(300));
    let ticket = invitation.ticket.expose();
    for _ in 0..3 {
        let looked = sessions.look(ticket, at(1)).expect("good");
        assert_eq!(
            (looked.client_key, looked.number),
            (site("acme"), invitation.number)
        );
    }
    let (_, session) = sessions.open(ticket, at(2)).expect("opens");
    assert_eq!(session.client_key, site("acme"));
    assert_eq!(sessions.look(ticket, at(3)), Err(InvitationError::Spent));
    assert_eq!(
        sessions.open(ticket, at(3)).map(drop),
        Err(InvitationError::Spent)
    );
}

#[test]
fn an_invitation_is_over_after_five_minutes() {
    let sessions = sessions();
    let invitation = sessions.invite(site("acme"), at(0));
    assert!(sessions.look(invitation.ticket.expose(), at(299)).is_ok());
    for verdict in [
        sessions.look(invitation.ticket.expose(), at(300)).map(drop),
        sessions.open(invitation.ticket.expose(), at(300)).map(drop),
    ] {
        assert_eq!(verdict, Err(InvitationError::Expired));
    }
}

#[test]
fn what_was_changed_or_signed_by_another_is_no_ticket() {
    let (ours, theirs) = (sessions(), sessions());
    let invitation = ours.invite(site("acme"), at(0));
    let ticket = invitation.ticket.expose();
    assert_eq!(
        theirs.look(ticket, at(0)),
        Err(InvitationError::Unsigned),
        "of an earlier life"
    );
    // Every character counts, but for the bits that are left over at an end of base64, which does not decode.
    for place in 0..ticket.len() {
        let mut changed = ticket.as_bytes().to_vec();
        changed[place] = if changed[place] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).expect("ASCII");
        assert_eq!(
            ours.look(&changed, at(0)),
            Err(InvitationError::Unsigned),
            "{place}"
        );
    }
    let other = ours.invite(site("other"), at(0));
    let (text, _) = other.ticket.expose().split_once('.').expect("two parts");
    let (_, signature) = ticket.split_once('.').expect("two parts");
    for odd in [format!("{text}.{signature}"), String::new(), ".".to_owned()] {
        assert_eq!(ours.look(&odd, at(0)), Err(InvitationError::Unsigned));
    }
    // What the page holds is no ticket either, nor the cookie what the page holds.
    let (cookie, _) = ours.open(ticket, at(0)).expect("opens");
    let (_, token) = ours.page(cookie.expose(), at(0)).expect("session");
    let swapped = ours.call(token.expose(), cookie.expose(), false, at(0));
    assert_eq!(swapped, Err(SessionError::Over));
    let forged = format!("{}.{}", cookie.expose(), token.expose());
    assert_eq!(ours.look(&forged, at(0)), Err(InvitationError::Unsigned));
}

#[test]
fn of_many_at_once_one_opens_it() {
    let sessions = sessions();
    let invitation = sessions.invite(site("acme"), at(0));
    let opened = std::thread::scope(|scope| {
        let attempts: Vec<_> = (0..16)
            .map(|_| scope.spawn(|| sessions.open(invitation.ticket.expose(), at(1)).is_ok()))
            .collect();
        let done = attempts.into_iter().map(|one| one.join().expect("thread"));
        done.filter(|opened| *opened).count()
    });
    assert_eq!(opened, 1);
}

#[test]
fn a_call_needs_the_cookie_and_what_its_page_knows() {
    let sessions = sessions();
    let (cookie, session) = open(&sessions, "acme", at(0));
    let (other, _) = open(&sessions, "acme", at(0));
    let (_, token) = sessions.page(cookie.expose(), at(1)).expect("session");
    let (_, others) = sessions.page(other.expose(), at(1)).expect("session");
    assert_eq!(
        sessions.call(cookie.expose(), token.expose(), false, at(2)),
        Ok(session)
    );
    for wrong in ["", "x", others.expose(), cookie.expose()] {
        assert_eq!(
            sessions.call(cookie.expose(), wrong, false, at(2)),
            Err(SessionError::NotItsPage),
            "{wrong}"
        );
    }
    assert_eq!(
        sessions.call("", token.expose(), false, at(2)),
        Err(SessionError::Over)
    );
}

#[test]
fn looking_does_not_keep_a_session_and_nothing_keeps_it_for_good() {
    let sessions = sessions();
    let (cookie, _) = open(&sessions, "acme", at(0));
    let (_, token) = sessions.page(cookie.expose(), at(0)).expect("session");
    let call = |use_it, seconds| {
        sessions
            .call(cookie.expose(), token.expose(), use_it, at(seconds))
            .map(drop)
    };
    assert_eq!(call(false, 1799), Ok(()));
    assert_eq!(call(false, 1800), Err(SessionError::Over));
    assert_eq!(call(true, 1799), Ok(()), "nobody looked that late");
    assert_eq!(call(false, 1800 + 1700), Ok(()));
    let mut seconds = 1799;
    while seconds + 1500 < 8 * 3600 {
        seconds += 1500;
        assert_eq!(call(true, seconds), Ok(()), "{seconds}");
    }
    assert_eq!(call(true, 8 * 3600), Err(SessionError::Over));
}

#[test]
fn a_wrong_token_does_not_keep_a_session() {
    let sessions = sessions();
    let (cookie, _) = open(&sessions, "acme", at(0));
    let attempt = sessions.call(cookie.expose(), "AAAA", true, at(1700));
    assert_eq!(attempt, Err(SessionError::NotItsPage));
    let page = sessions.page(cookie.expose(), at(1801)).map(drop);
    assert_eq!(page, Err(SessionError::Over));
}

#[test]
fn an_account_counts_for_its_own_site_while_its_session_lasts() {
    let sessions = sessions();
    let (_, session) = open(&sessions, "acme", at(0));
    let id = |text| LinkId::parse(text).expect("a link's id");
    let link = id("89d5e9b4-36e8-4460-add1-ca048de6c13d");
    let second = id("5f7f3f5e-6f0e-4a53-a7a6-3c1c1a0c5a51");
    let ask = |name: &str, link, seconds| {
        sessions.account(&session.account_id, &site(name), link, at(seconds))
    };
    assert_eq!(ask("other", link, 1), Account::Nobody);
    assert_eq!(ask("acme", link, 1), Account::Operator { first: true });
    assert_eq!(ask("acme", link, 1), Account::Operator { first: true });
    sessions.vouched(&session.account_id, link);
    assert_eq!(ask("acme", link, 2), Account::Operator { first: false });
    assert_eq!(ask("acme", second, 2), Account::Operator { first: true });
    assert_eq!(ask("acme", link, 1800), Account::Nobody, "it was idle");
    let of = |account_id: &str| sessions.account(account_id, &site("acme"), link, at(3));
    assert_eq!(of("relay-operator-"), Account::Nobody);
    assert_eq!(of("557058:abc"), Account::Jiras);
    sessions.close(&session);
    assert_eq!(ask("acme", link, 4), Account::Nobody);
}

#[test]
fn many_sessions_and_invitations_take_no_more_room() {
    let sessions = sessions();
    let mut first = None;
    for number in 0..2 * SESSIONS_MAX as i64 {
        let (cookie, _) = open(&sessions, "acme", at(number));
        first.get_or_insert(cookie);
    }
    assert_eq!(lock(&sessions.state).live.len(), SESSIONS_MAX);
    let first = first.expect("a cookie");
    let gone = sessions.page(first.expose(), at(200)).map(drop);
    assert_eq!(gone, Err(SessionError::Over), "the idlest made room");

    let many = (0..2 * SPENT_MAX).find_map(|_| {
        let invitation = sessions.invite(site("acme"), at(250));
        sessions.open(invitation.ticket.expose(), at(250)).err()
    });
    assert_eq!(many, Some(InvitationError::TooMany));
    let (_, session) = open(&sessions, "acme", at(250 + 300));
    assert_eq!(session.client_key, site("acme"), "there is room again");
}

#[test]
fn nothing_of_it_is_printed() {
    let sessions = sessions();
    let invitation = sessions.invite(site("acme"), at(0));
    assert!(format!("{invitation:?}").contains("ticket: ***"));
}
