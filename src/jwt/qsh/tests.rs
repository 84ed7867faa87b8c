//! The rules, proved three times: by a table of our own, by the shared vectors where they are at
//! hand, and by properties.

use std::{collections::BTreeMap, path::Path};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use percent_encoding::percent_encode;
use proptest::prelude::*;
use ring::hmac;
use serde_json::Value;

use super::{AgreedTarget, AgreedTargetError, CONTEXT, Qsh, RESERVED, Rule};
use super::{gitlab_request_matches, jira_request_matches};
use crate::jwt::target::{MAX_PARAMETERS, Target, TargetError};

const RULES: [Rule; 3] = [Rule::JiraSigns, Rule::JiraVerifies, Rule::GitLab];

// The table: one row for each tricky vector, named like it.

/// Vector, method, target, base path, and the canonical form that all rules give.
#[rustfmt::skip]
const AGREED: &[(&str, &str, &str, &str, &str)] = &[
    ("method-lower", "get", "/a?x=1", "", "GET&/a&x=1"),
    ("method-mixed", "PaTcH", "/a?x=1", "", "PATCH&/a&x=1"),
    ("path-trailing", "GET", "/a/b/?x=1", "", "GET&/a/b&x=1"),
    ("path-amp-encoded", "GET", "/a%26b?x=1", "", "GET&/a%26b&x=1"),
    ("path-subdelims", "GET", "/path!$&'()*+,;=?a=b", "", "GET&/path!$%26'()*+,;=&a=b"),
    ("path-semicolon", "GET", "/a;v=1/b;w=2?x=1", "", "GET&/a;v=1/b;w=2&x=1"),
    ("path-semicolon-last", "GET", "/a/b;w=2?x=1", "", "GET&/a/b;w=2&x=1"),
    ("path-dot", "GET", "/a/./b/../c?x=1", "", "GET&/a/./b/../c&x=1"),
    ("path-colon-at", "GET", "/a:b@c?x=1", "", "GET&/a:b@c&x=1"),
    ("base-exact", "GET", "/base?x=1", "/base", "GET&/&x=1"),
    ("base-prefix-not-segment", "GET", "/basement/a?x=1", "/base", "GET&/ment/a&x=1"),
    ("base-root-slash", "GET", "/a?x=1", "/", "GET&/a&x=1"),
    ("base-twice", "GET", "/base/base/a?x=1", "/base", "GET&/base/a&x=1"),
    ("q-empty", "GET", "/a?", "", "GET&/a&"),
    ("q-only-jwt", "GET", "/a?jwt=x.y.z", "", "GET&/a&"),
    ("q-jwt-upper", "GET", "/a?JWT=x&b=1", "", "GET&/a&JWT=x&b=1"),
    ("q-jwt-encoded-name", "GET", "/a?%6Awt=1&b=1", "", "GET&/a&b=1"),
    ("q-plus-space", "GET", "/a?p=a+b", "", "GET&/a&p=a%20b"),
    ("q-pct20-space", "GET", "/a?p=a%20b", "", "GET&/a&p=a%20b"),
    ("q-star", "GET", "/a?p=*", "", "GET&/a&p=%2A"),
    ("q-star-pct", "GET", "/a?p=%2A", "", "GET&/a&p=%2A"),
    ("q-tilde-pct", "GET", "/a?p=%7E", "", "GET&/a&p=~"),
    ("q-lower-hex", "GET", "/a?p=%e5%ae%ae", "", "GET&/a&p=%E5%AE%AE"),
    ("q-double-amp", "GET", "/a?a=1&&b=2", "", "GET&/a&a=1&b=2"),
    ("q-trailing-amp", "GET", "/a?a=1&", "", "GET&/a&a=1"),
    ("q-eq-in-value", "GET", "/a?a=b=c", "", "GET&/a&a=b%3Dc"),
    ("q-key-brackets", "GET", "/a?a[]=1&a[]=2", "", "GET&/a&a%5B%5D=1,2"),
    ("q-repeat-reserved", "GET", "/a?a=-&a=/", "", "GET&/a&a=-,%2F"),
    ("q-order-prefix", "GET", "/a?ab=1&a=2&a-=3", "", "GET&/a&a=2&a-=3&ab=1"),
    ("q-order-astral", "GET", "/a?%F0%9F%98%80=1&%EF%BF%BD=2", "", "GET&/a&%EF%BF%BD=2&%F0%9F%98%80=1"),
    ("q-fragment", "GET", "/a?x=1#frag", "", "GET&/a&x=1"),
    ("q-newline", "GET", "/a?p=a%0D%0Ab", "", "GET&/a&p=a%0D%0Ab"),
];

/// Vector or fact, target, and the canonical form when Jira signs, Jira verifies, GitLab does.
#[rustfmt::skip]
const DISAGREED: &[(&str, &str, &str, &str, &str)] = &[
    ("path-pct-slash", "/repo/a%2Fb?x=1", "GET&/repo/a/b&x=1", "GET&/repo/a%2Fb&x=1", "GET&/repo/a%2Fb&x=1"),
    ("q-empty-name", "/a?=v&a=1", "GET&/a&a=1", "GET&/a&a=1", "GET&/a&=v&a=1"),
    ("q-semicolon-sep", "/a?a=1;b=2", "GET&/a&a=1%3Bb%3D2", "GET&/a&a=1%3Bb%3D2", "GET&/a&a=1&b=2"),
    ("q-repeat-comma", "/a?a=1,2&a=0", "GET&/a&a=0,1%2C2", "GET&/a&a=0,1%2C2", "GET&/a&a=1%2C2,0"),
    ("q-order-reserved", "/a?a/=1&a-=2", "GET&/a&a%2F=1&a-=2", "GET&/a&a%2F=1&a-=2", "GET&/a&a-=2&a%2F=1"),
    // Not among the shared vectors. GitLab's column was run on the gem; Jira's is what Atlassian's
    // Java code and Tomcat's parameter parser come to.
    ("path decoded once, then `&` encoded", "/%E5%AE%AE%2526%26", "GET&/宮%26%26&", "GET&/%E5%AE%AE%2526%26&",
     "GET&/%E5%AE%AE%2526%26&"),
    ("two trailing slashes", "/a//", "GET&/a&", "GET&/a/&", "GET&/a/&"),
    ("space in a name", "/a?a+b=c%20d+%2B", "GET&/a&a%20b=c%20d%20%2B", "GET&/a&a%20b=c%20d%20%2B",
     "GET&/a&a+b=c%20d%20%2B"),
    ("a repeated name, once without =", "/a?a&a=1", "GET&/a&a=,1", "GET&/a&a=,1", "GET&/a&a=1"),
    ("values in UTF-16 order", "/a?a=%EF%BF%BD&a=%F0%9F%98%80", "GET&/a&a=%F0%9F%98%80,%EF%BF%BD",
     "GET&/a&a=%F0%9F%98%80,%EF%BF%BD", "GET&/a&a=%EF%BF%BD,%F0%9F%98%80"),
    ("token after a semicolon", "/a?b=1;jwt=x", "GET&/a&b=1%3Bjwt%3Dx", "GET&/a&b=1%3Bjwt%3Dx", "GET&/a&b=1"),
];

/// Vector, target, and the refusal's code.
#[rustfmt::skip]
const REFUSED: &[(&str, &str, &str)] = &[
    ("path-raw-unicode", "/宮?x=1", "not_ascii"),
    ("path-brackets", "/a[1]{2}?x=1", "character_in_path"),
    ("q-raw-unicode", "/a?p=宮", "not_ascii"),
    ("q-invalid-utf8", "/a?p=%E5%AE", "not_utf8"),
    ("q-bad-pct", "/a?p=100%&b=1", "malformed_escape"),
];

/// Method, target, base path, canonical form, hash: the unit tests of npm atlassian-jwt.
#[rustfmt::skip]
const JAVASCRIPT: &[(&str, &str, &str, &str, &str)] = &[
    ("get",
     "/path/to/service?zee_last=param&repeated=parameter%201&first=param&repeated=parameter%202&repeated=Parameter%202",
     "",
     "GET&/path/to/service&first=param&repeated=Parameter%202,parameter%201,parameter%202&zee_last=param",
     "9ae6056cf66c00e76fa15e66fd26091fecd7356eec2f2c30629835b656799f66"),
    ("get",
     "/base/path/to/service?zee_last=param&repeated=parameter%201&first=param&repeated=parameter%202&repeated=Parameter%202",
     "/base",
     "GET&/path/to/service&first=param&repeated=Parameter%202,parameter%201,parameter%202&zee_last=param",
     "9ae6056cf66c00e76fa15e66fd26091fecd7356eec2f2c30629835b656799f66"),
    ("get",
     "/hello-world?lic=none&tz=Australia%2FSydney&cp=%2Fjira&user_key=&loc=en-US&user_id=&jwt=X&xdm_e=http%3A%2F%2Fstorm%3A2990&xdm_c=channel-servlet-hello-world&xdm_p=1",
     "",
     "GET&/hello-world&cp=%2Fjira&lic=none&loc=en-US&tz=Australia%2FSydney&user_id=&user_key=&xdm_c=channel-servlet-hello-world&xdm_e=http%3A%2F%2Fstorm%3A2990&xdm_p=1",
     "8063ff4ca1e41df7bc90c8ab6d0f6207d491cf6dad7c66ea797b4614b71922e9"),
    ("get", "/hello-world?a&b=foo&c", "", "GET&/hello-world&a=&b=foo&c=",
     "05a07346264b590803b827ab297a7fcb7e250fe5fa8c66187a9131b0934496b2"),
    ("post", "/jira/rest/api/2/project/jira&a=b&c=d?x=y", "/jira",
     "POST&/rest/api/2/project/jira%26a=b%26c=d&x=y",
     "70db3b47a62c471526b51481ee17407771df153801674a5002c164e87ce056ae"),
    ("get", "/jira/rest/api/2/project/jira?x=y", "/jira", "GET&/rest/api/2/project/jira&x=y",
     "9584d4a30447c0235df4aabcca0512ae8b4a17a47c10cad8ba23a64b40cc6b4c"),
    ("post", "/rest/api/2/project&a=b?x=y", "", "POST&/rest/api/2/project%26a=b&x=y",
     "fa48f57a98d3995f12c96664dae66fccc41a5b5dd8305ff6838d04b4b469cb17"),
    ("post", "/rest/api/2/project&a=b&c=d?x=y", "", "POST&/rest/api/2/project%26a=b%26c=d&x=y",
     "0d387fa561b533084921196db33213335ba61ca2c78b6690c5811518d035d850"),
    ("get", "/path", "", "GET&/path&", "799be84a7fa35570087163c0cd9af3abff7ac05c2c12ba0bb1d7eebc984b3ac2"),
    ("get", "", "", "GET&/&", "c88caad15a1c1a900b8ac08aa9686f4e8184539bea1deda36e2f649430df3239"),
    ("get", "/", "", "GET&/&", "c88caad15a1c1a900b8ac08aa9686f4e8184539bea1deda36e2f649430df3239"),
    // The library can count a form body as a query. No rule of ours does: we are sent JSON.
    ("post", "/hello-world", "", "POST&/hello-world&",
     "6f95f3738e1b037a3bebbe0ad237d80fdbc1d5ae452e98ce03a9c004c178ebb4"),
];

/// Target and canonical form: Atlassian's vectors of 2016, all GET, without base path.
#[rustfmt::skip]
const OFFICIAL: &[(&str, &str)] = &[
    ("/test?param=value", "GET&/test&param=value"),
    ("/test?param=some+spaces+in+this+parameter", "GET&/test&param=some%20spaces%20in%20this%20parameter"),
    ("/test?query=connect*", "GET&/test&query=connect%2A"),
    ("/test?director=%E5%AE%AE%E5%B4%8E+%E9%A7%BF", "GET&/test&director=%E5%AE%AE%E5%B4%8E%20%E9%A7%BF"),
    ("/test?ids=10%2C2%2C20%2C1", "GET&/test&ids=10%2C2%2C20%2C1"),
    ("/test?tuples=1%2C2%2C3&tuples=6%2C5%2C4&tuples=7%2C9%2C8",
     "GET&/test&tuples=1%2C2%2C3,6%2C5%2C4,7%2C9%2C8"),
    ("/test?title=1+%2B+1+equals+3", "GET&/test&title=1%20%2B%201%20equals%203"),
    ("/test?json=%7B%22key%22%3A%22value%22%7D", "GET&/test&json=%7B%22key%22%3A%22value%22%7D"),
    ("/test?json=%5B%22val1%22%2C%22val2%22%5D", "GET&/test&json=%5B%22val1%22%2C%22val2%22%5D"),
    ("/test?quote=%27quoted%27", "GET&/test&quote=%27quoted%27"),
    ("/test?param=%28%29", "GET&/test&param=%28%29"),
    ("/test?eta=in+%7E3+days", "GET&/test&eta=in%20~3%20days"),
    ("/test?rfc=+%3C%3E%22%23%25%7B%7D%7C%5C%5E%7E%5B%5D%60",
     "GET&/test&rfc=%20%3C%3E%22%23%25%7B%7D%7C%5C%5E~%5B%5D%60"),
    ("/test?rfc=%3B%2F%3F%3A%40%3D%26", "GET&/test&rfc=%3B%2F%3F%3A%40%3D%26"),
    ("/test?rfc=%24-_.%2B%21*%27%28%29%2C", "GET&/test&rfc=%24-_.%2B%21%2A%27%28%29%2C"),
    ("/test?rfc=-._%7E", "GET&/test&rfc=-._~"),
    ("/test?rfc=%3A%2F%3F%23%5B%5D%40", "GET&/test&rfc=%3A%2F%3F%23%5B%5D%40"),
    ("/test?rfc=%21%24%26%27%28%29*%2B%2C%3B%3D", "GET&/test&rfc=%21%24%26%27%28%29%2A%2B%2C%3B%3D"),
    ("/test?notmuch=", "GET&/test&notmuch="),
    ("/test?referrer=http%3A%2F%2Ffrom.net%2Fp%3Fx%3DA%2B%252B%2BB%26y%3D%2524-_.%252B%2521*%2527%2528%2529%252C",
     "GET&/test&referrer=http%3A%2F%2Ffrom.net%2Fp%3Fx%3DA%2B%252B%2BB%26y%3D%2524-_.%252B%2521%2A%2527%2528%2529%252C"),
    ("/test?ids=-1&ids=1&ids=10&ids=2&ids=20", "GET&/test&ids=-1,1,10,2,20"),
    ("/test?ids=.1&ids=.2&ids=%3A1&ids=%3A2", "GET&/test&ids=.1,.2,%3A1,%3A2"),
    ("/test?chars=%E5%AE%AE&chars=%E5%B4%8E&chars=%E9%A7%BF",
     "GET&/test&chars=%E5%AE%AE,%E5%B4%8E,%E9%A7%BF"),
    ("/test?c=&c=+&c=%2520&c=%2B", "GET&/test&c=,%20,%2520,%2B"),
    ("/test?%231=value", "GET&/test&%231=value"),
    ("/test?%3A1=value", "GET&/test&%3A1=value"),
    ("/test?%241=value", "GET&/test&%241=value"),
    ("/test?a=x&b=y", "GET&/test&a=x&b=y"),
    ("/test?a=x1&a=x10&b=y1&b=y10", "GET&/test&a=x1,x10&b=y1,y10"),
    ("/test?a=another+one&a=one+string&b=and+yet+more&b=more+here",
     "GET&/test&a=another%20one,one%20string&b=and%20yet%20more,more%20here"),
    ("/test?a=1%2C2%2C3&a=4%2C5%2C6&b=a%2Cb%2Cc&b=d%2Ce%2Cf",
     "GET&/test&a=1%2C2%2C3,4%2C5%2C6&b=a%2Cb%2Cc,d%2Ce%2Cf"),
    ("/test?a10=1&a1=2&b1=3&b10=4", "GET&/test&a1=2&a10=1&b1=3&b10=4"),
    ("/test?A=A&a=a&b=b&B=B", "GET&/test&A=A&B=B&a=a&b=b"),
    ("/search-view?link=http%3A%2F%2Fion%3A2990%2Fjira%2Fsecure%2FIssueNavigator.jspa%3Freset%3Dtrue%26jqlQuery%3Dissuetype%2B%253D%2BBug&startIssue=0&totalIssues=2&endIssue=2&issues=issues%3DTEST-2%2CTEST-1&tz=Australia%2FSydney&loc=en-US&user_id=admin&user_key=admin&xdm_e=http%3A%2F%2Fion.local%3A2990&xdm_c=channel-acmodule-1564427223927602208&cp=jira&lic=none",
     "GET&/search-view&cp=jira&endIssue=2&issues=issues%3DTEST-2%2CTEST-1&lic=none&link=http%3A%2F%2Fion%3A2990%2Fjira%2Fsecure%2FIssueNavigator.jspa%3Freset%3Dtrue%26jqlQuery%3Dissuetype%2B%253D%2BBug&loc=en-US&startIssue=0&totalIssues=2&tz=Australia%2FSydney&user_id=admin&user_key=admin&xdm_c=channel-acmodule-1564427223927602208&xdm_e=http%3A%2F%2Fion.local%3A2990"),
    ("/test", "GET&/test&"),
    ("/endsWithDelimiter/?a=b", "GET&/endsWithDelimiter&a=b"),
    ("/endsWithDelimiter/", "GET&/endsWithDelimiter&"),
    ("/path-._~?a=b", "GET&/path-._~&a=b"),
    ("/path!$&'()*+,;=?a=b", "GET&/path!$%26'()*+,;=&a=b"),
];

/// Method, path, parameters, canonical form, hash: calls between GitLab, Jira and us.
type Call = (
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
    &'static str,
    &'static str,
);

#[rustfmt::skip]
const CALLS: &[Call] = &[
    ("POST", "/events/installed", &[], "POST&/events/installed&",
     "747264aa6a569f3f6c2d148dc852a789d817632826d14216ef4d45f02ca5f6eb"),
    ("POST", "/events/uninstalled", &[], "POST&/events/uninstalled&",
     "57d5306d4c520456ebb58ac802779232a941e583589354b8a31aa949cdd4c9ae"),
    ("GET", "/subscriptions", &[], "GET&/subscriptions&",
     "e26e9d1797cde20a340efacb0c2c0b919e26015d55cdfd375e696792f09baebf"),
    ("POST", "/rest/devinfo/0.10/bulk", &[], "POST&/rest/devinfo/0.10/bulk&",
     "8cc25e28719a5c3212595a135795bfe0a0e54b0395b1291f91d8b8c47373672c"),
    ("POST", "/rest/builds/0.1/bulk", &[], "POST&/rest/builds/0.1/bulk&",
     "0947f5bc05f2c4728bc2e3905089951a4aa601772a79268aa983e2ef881b79ff"),
    ("POST", "/rest/deployments/0.1/bulk", &[], "POST&/rest/deployments/0.1/bulk&",
     "e50a1fc975925dfc3652c2ea120c1d37f5581e16d5a167a5adbeda3bda7ab589"),
    ("POST", "/rest/featureflags/0.1/bulk", &[], "POST&/rest/featureflags/0.1/bulk&",
     "e7c19fd4100af1d36fb5ced604f41e5fd7688178f5e3c2e3f8abfbd50b3637ea"),
    ("GET", "/rest/api/3/user", &[("expand", "groups"), ("accountId", "557058:abc")],
     "GET&/rest/api/3/user&accountId=557058%3Aabc&expand=groups",
     "d5ede9a41f65959f65aa1a91f0944feeb93f02ec2cc74c8afb89e4781eaee536"),
    ("GET", "/workspaces/search", &[("searchQuery", "my group")],
     "GET&/workspaces/search&searchQuery=my%20group",
     "5d8631dfff0875c095a0d789bdc0831f898352d167fb90da80e5d93738ad265b"),
];

fn parse(target: &str) -> Target {
    Target::parse(target).unwrap_or_else(|refusal| panic!("{target}: {refusal}"))
}

fn canonical(rule: Rule, method: &str, target: &str, base_path: &str) -> String {
    rule.canonical(method, &parse(target), base_path)
}

#[test]
fn rules_agree_on_most_tricky_targets() {
    for (vector, method, target, base_path, expected) in AGREED {
        for rule in RULES {
            let found = canonical(rule, method, target, base_path);
            assert_eq!(found, *expected, "{vector}, {rule:?}");
        }
    }
}

#[test]
fn rules_disagree_as_their_libraries_do() {
    for (fact, target, signs, verifies, gitlab) in DISAGREED {
        for (rule, expected) in RULES.into_iter().zip([signs, verifies, gitlab]) {
            assert_eq!(
                canonical(rule, "GET", target, ""),
                *expected,
                "{fact}, {rule:?}"
            );
        }
    }
}

#[test]
fn many_values_are_sorted_by_jira_alone() {
    let values = |numbers: &mut dyn Iterator<Item = u8>, prefix, separator| {
        let values: Vec<_> = numbers.map(|n| format!("{prefix}{n:02}")).collect();
        values.join(separator)
    };
    let target = format!("/a?{}", values(&mut (0..25).rev(), "a=", "&"));
    let sorted = format!("GET&/a&a={}", values(&mut (0..25), "", ","));
    let as_they_came = format!("GET&/a&a={}", values(&mut (0..25).rev(), "", ","));
    assert_eq!(canonical(Rule::JiraSigns, "GET", &target, ""), sorted);
    assert_eq!(canonical(Rule::JiraVerifies, "GET", &target, ""), sorted);
    assert_eq!(canonical(Rule::GitLab, "GET", &target, ""), as_they_came);
}

#[test]
fn no_parameter_is_lost_in_a_long_query() {
    let query: Vec<_> = (0..1001).map(|n| format!("p{n:04}=1")).collect();
    let query = query.join("&");
    for rule in RULES {
        let found = canonical(rule, "GET", &format!("/a?{query}"), "");
        assert_eq!(found, format!("GET&/a&{query}"));
    }
}

#[test]
fn targets_without_one_meaning_are_refused() {
    for (vector, target, code) in REFUSED {
        let refusal = Target::parse(target).map_err(|refusal| refusal.code());
        assert_eq!(refusal, Err(*code), "{vector}");
    }
    for raw in [
        '"', '<', '>', '\\', '^', '`', '{', '|', '}', ' ', '\n', '\0', '\x7f',
    ] {
        assert_eq!(
            Target::parse(&format!("/{raw}")),
            Err(TargetError::CharacterInPath {
                character: raw,
                at: 1
            }),
        );
        assert_eq!(
            Target::parse(&format!("/?{raw}")),
            Err(TargetError::CharacterInQuery {
                character: raw,
                at: 2
            }),
        );
    }
    for raw in ['[', ']'] {
        assert_eq!(
            Target::parse(&format!("/{raw}")),
            Err(TargetError::CharacterInPath {
                character: raw,
                at: 1
            }),
        );
    }
    for target in ["*", "a", "https://app.example.com/a"] {
        assert_eq!(Target::parse(target), Err(TargetError::NotOriginForm));
    }
    for target in ["/%", "/%4", "/%4g", "/%%41", "/?a=%u0041"] {
        let refusal = Target::parse(target).map_err(|refusal| refusal.code());
        assert_eq!(refusal, Err("malformed_escape"), "{target}");
    }
}

#[test]
fn javascript_facts_hold() {
    for (method, target, base_path, expected, hash) in JAVASCRIPT {
        for rule in RULES {
            // Values of `repeated` arrive unsorted there, which GitLab keeps.
            if rule == Rule::GitLab && target.contains("repeated=") {
                continue;
            }
            let found = canonical(rule, method, target, base_path);
            assert_eq!(found, *expected, "{rule:?}");
            assert_eq!(Qsh::of(&found).as_str(), *hash);
        }
    }
}

#[test]
fn official_facts_hold() {
    for (target, expected) in OFFICIAL {
        for rule in RULES {
            assert_eq!(canonical(rule, "GET", target, ""), *expected, "{rule:?}");
        }
    }
}

#[test]
fn calls_between_gitlab_jira_and_us_have_known_hashes() {
    for (method, path, parameters, expected, hash) in CALLS {
        assert_eq!(Qsh::of(expected).as_str(), *hash);
        for base_path in ["", "/", "/-/jira_connect", "/gitlab.test/-/jira_connect"] {
            let agreed = AgreedTarget::new(base_path, path, parameters).expect("a plain target");
            assert_eq!(agreed.qsh(method).as_str(), *hash);
            for rule in RULES {
                let found = canonical(rule, method, &agreed.path_and_query(), base_path);
                assert_eq!(found, *expected, "{rule:?}, {base_path:?}");
            }
        }
    }
}

// The shared vectors.

#[test]
fn shared_official_vectors_hold_with_their_signatures() {
    let Some(vectors) = shared("official-2016.json", "vectors") else {
        return;
    };
    for vector in &vectors {
        let text = |key: &str| text(vector, key);
        let base_path = below_host(text("base_url"));
        for url in [text("url"), text("signed_url")] {
            let target = below_host(url);
            for rule in RULES {
                let found = canonical(rule, text("method"), target, base_path);
                assert_eq!(found, text("canonical"), "{rule:?}");
                assert_eq!(Qsh::of(&found).as_str(), text("qsh"));
            }
        }

        let signed = parse(below_host(text("signed_url")));
        assert_eq!(signed.tokens().collect::<Vec<_>>(), [text("jwt")]);
        let (message, signature) = text("jwt").rsplit_once('.').expect("three parts");
        let (_, claims) = message.split_once('.').expect("three parts");
        let key = hmac::Key::new(hmac::HMAC_SHA256, text("secret").as_bytes());
        hmac::verify(&key, message.as_bytes(), &base64url(signature)).expect("HS256 holds");
        let claims: Value = serde_json::from_slice(&base64url(claims)).expect("claims are JSON");
        let claim = claims.get("qsh").and_then(Value::as_str).expect("a qsh");
        assert!(jira_request_matches(
            &signed,
            text("method"),
            base_path,
            claim
        ));
    }
}

#[test]
fn shared_javascript_facts_hold() {
    let Some(vectors) = shared("qsh-js-unit.json", "vectors") else {
        return;
    };
    for vector in &vectors {
        let text = |key: &str| text(vector, key);
        // Counts a form body, which no rule of ours does.
        if vector.get("check_body") == Some(&Value::Bool(true)) {
            continue;
        }
        // A space stands for a decoded one.
        let target = format!("{}?{}", text("path"), text("query").replace(' ', "%20"));
        for rule in [Rule::JiraSigns, Rule::JiraVerifies] {
            let found = canonical(rule, text("method"), &target, below_host(text("base_url")));
            assert_eq!(found, text("canonical"), "{rule:?}");
            assert_eq!(Qsh::of(&found).as_str(), text("qsh"));
        }
    }
}

#[test]
fn shared_tricky_targets_hold() {
    let Some(vectors) = shared("tricky-urls.json", "items") else {
        return;
    };
    for vector in &vectors {
        let text = |key: &str| text(vector, key);
        let parsed = Target::parse(below_host(text("url")));
        if vector.get("relay").is_some() {
            assert!(parsed.is_err(), "{}", text("id"));
            continue;
        }
        let target = parsed.unwrap_or_else(|refusal| panic!("{}: {refusal}", text("id")));
        for (rule, column) in RULES.into_iter().zip(["java", "java_verifies", "ruby"]) {
            let found = rule.canonical(text("method"), &target, below_host(text("base_url")));
            assert_eq!(found, text(column), "{}, {rule:?}", text("id"));
        }
    }
}

fn shared(file: &str, list: &str) -> Option<Vec<Value>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/vectors");
    let Ok(json) = std::fs::read(folder.join(file)) else {
        println!("no shared {file} here: the rules were proved by the built-in table alone");
        return None;
    };
    let json: Value = serde_json::from_slice(&json).expect("vectors are JSON");
    let list = json.get(list).and_then(Value::as_array);
    Some(list.expect("the file holds this list").clone())
}

fn text<'a>(vector: &'a Value, key: &str) -> &'a str {
    vector
        .get(key)
        .and_then(Value::as_str)
        .expect("the vector has this text")
}

/// What stands behind scheme and host, if they are there.
fn below_host(url: &str) -> &str {
    match url.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("", |at| rest.split_at(at).1),
        None => url,
    }
}

fn base64url(text: &str) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(text).expect("base64url")
}

// Matching.

fn hash(canonical: &str) -> String {
    Qsh::of(canonical).as_str().to_owned()
}

#[test]
fn jira_may_sign_the_raw_or_the_decoded_path() {
    let target = parse("/b/repo/a%2Fb?x=1");
    let matches = |claim: &str| jira_request_matches(&target, "GET", "/b", claim);
    assert!(matches(&hash("GET&/repo/a%2Fb&x=1")));
    assert!(matches(&hash("GET&/repo/a/b&x=1")));

    for other in [
        "POST&/repo/a/b&x=1",
        "GET&/b/repo/a/b&x=1",
        "GET&/repo/a%252Fb&x=1",
        "GET&/repo/a/b&",
        "GET&/repo/a/b&x=2",
    ] {
        assert!(!matches(&hash(other)), "{other}");
    }
    assert!(!matches(&hash("GET&/repo/a/b&x=1").to_uppercase()));
    assert!(!matches(CONTEXT));
    assert!(!matches(""));

    let twice_encoded = parse("/repo/a%252Fb");
    assert!(!jira_request_matches(
        &twice_encoded,
        "GET",
        "",
        &hash("GET&/repo/a/b&")
    ));
    let repeated = parse("/a?b=2&b=1");
    assert!(!jira_request_matches(
        &repeated,
        "GET",
        "",
        &hash("GET&/a&b=2,1")
    ));
}

#[test]
fn gitlab_may_sign_by_the_gem_or_by_jiras_rule() {
    let repeated = parse("/a?b=2&b=1");
    let matches = |claim: &str| gitlab_request_matches(&repeated, "GET", "", claim);
    assert!(matches(&hash("GET&/a&b=2,1")));
    assert!(matches(&hash("GET&/a&b=1,2")));
    assert!(!matches(CONTEXT));

    let escaped = parse("/a%2Fb");
    assert!(!gitlab_request_matches(
        &escaped,
        "GET",
        "",
        &hash("GET&/a/b&")
    ));
}

#[test]
fn gitlab_cannot_have_signed_what_we_would_read_otherwise() {
    let target = parse("/a?a=1;b=2");
    assert_eq!(target.query("a"), Some("1;b=2"));
    assert!(!gitlab_request_matches(
        &target,
        "GET",
        "",
        &hash("GET&/a&a=1&b=2")
    ));
    assert!(gitlab_request_matches(
        &target,
        "GET",
        "",
        &hash("GET&/a&a=1%3Bb%3D2")
    ));
}

// What the front door refuses, and what handlers read.

#[test]
fn the_front_door_refuses_what_jira_never_sends() {
    for (target, code) in [
        ("//app.example.com/a", "double_slash"),
        ("/a//b", "double_slash"),
        ("/a//", "double_slash"),
        ("/a/./b", "dot_segment"),
        ("/a/..", "dot_segment"),
        ("/a/%2e%2E/b", "dot_segment"),
        ("/a/.%2e", "dot_segment"),
        ("/a%2F..%2Fb", "dot_segment"),
        ("/a/..%5Cb", "dot_segment"),
        ("/a?=v", "nameless_parameter"),
        ("/a?b=1&=", "nameless_parameter"),
        ("/a?b[]=1", "character_in_query"),
        ("/a?b=1&c=2&b=1", "repeated_parameter"),
        ("/a?b=1&%62=2", "repeated_parameter"),
        ("/a?JWT=1&JWT=2", "repeated_parameter"),
    ] {
        assert!(Target::parse(target).is_ok(), "{target}");
        let refusal = Target::parse_strict(target, &["c"]).map_err(|refusal| refusal.code());
        assert_eq!(refusal, Err(code), "{target}");
    }
    for (_, target, code) in REFUSED {
        let refusal = Target::parse_strict(target, &[]).map_err(|refusal| refusal.code());
        assert_eq!(refusal, Err(*code), "{target}");
    }
}

#[test]
fn a_refusal_shows_only_the_start_of_a_strangers_name() {
    let long = "n".repeat(1000);
    let refusal = Target::parse_strict(&format!("/a?{long}&{long}"), &[]);
    let name = "n".repeat(64);
    assert_eq!(refusal, Err(TargetError::RepeatedParameter { name }));
}

#[test]
fn the_front_door_lets_honest_targets_pass() {
    for target in [
        "/",
        "/a/",
        "/a/.well-known/b..c/...?d=..",
        "/repo/a%2Fb",
        "/a?b=1&&c=2&",
        "/a?b=1&b=2&b=1",
        "/a?jwt=1&%6Awt=2",
        "/a?u=https://h//i/../j",
    ] {
        assert_eq!(Target::parse_strict(target, &["b"]), Target::parse(target));
    }
}

#[test]
fn the_front_door_counts_parameters() {
    let query: Vec<_> = (0..=MAX_PARAMETERS).map(|n| format!("p{n}")).collect();
    let (full, over) = (query.iter().take(MAX_PARAMETERS), query.iter());
    let target = |names: Vec<&str>| format!("/a?{}", names.join("&"));
    let full = target(full.map(String::as_str).collect());
    let over = target(over.map(String::as_str).collect());
    assert!(Target::parse_strict(&full, &[]).is_ok());
    assert_eq!(
        Target::parse_strict(&over, &[]),
        Err(TargetError::TooManyParameters {
            count: MAX_PARAMETERS + 1
        }),
    );
}

#[test]
fn routes_that_split_the_path_refuse_encoded_slashes() {
    for target in ["/a%2Fb", "/a%2fb", "/a%5Cb", "/a%5cb"] {
        let refusal = parse(target).refuse_encoded_slash();
        assert_eq!(refusal, Err(TargetError::EncodedSlash), "{target}");
    }
    for target in ["/a%252Fb", "/a/b?c=%2F", "/a%20b"] {
        assert_eq!(parse(target).refuse_encoded_slash(), Ok(()), "{target}");
    }
}

#[test]
fn handlers_read_decoded_parameters() {
    let target = parse("/a%20b?x=1+%2B%31&y&z=&x=%E5%AE%AE&jwt=t.1&%6Awt=t.2&JWT=t.3&jwt[]=t.4#f");
    assert_eq!(target.path(), "/a%20b");
    assert_eq!(target.query("x"), Some("1 +1"));
    assert_eq!(target.query_all("x").collect::<Vec<_>>(), ["1 +1", "宮"]);
    assert_eq!(target.query("y"), Some(""));
    assert_eq!(target.query("z"), Some(""));
    assert_eq!(target.query("f"), None);
    assert_eq!(target.tokens().collect::<Vec<_>>(), ["t.1", "t.2"]);
}

#[test]
fn debug_output_hides_tokens() {
    let shown = format!("{:?}", parse("/a?b=1&jwt=secret.token.value"));
    assert!(shown.contains("/a") && shown.contains("jwt"));
    assert!(!shown.contains("secret"), "{shown}");
}

#[test]
fn targets_that_rules_would_read_apart_are_not_built() {
    let path = |path: &str| {
        Err(AgreedTargetError::Path {
            path: path.to_owned(),
        })
    };
    for bad in [
        "", "/", "a", "/a/", "/a//b", "/a/./b", "/a/..", "/a%20b", "/a b", "/a;b", "/é",
    ] {
        assert_eq!(AgreedTarget::new("", bad, &[]), path(bad));
    }
    for bad in ["b", "//", "/b//c", "/b/../c", "/b+c"] {
        let found = AgreedTarget::new(bad, "/a", &[]);
        assert_eq!(found, path(bad.strip_suffix('/').unwrap_or(bad)));
    }
    for bad in ["", "a b", "a[]", "a-b", "a.b", "é"] {
        let name = bad.to_owned();
        assert_eq!(
            AgreedTarget::new("", "/a", &[("b", "1"), (bad, "2")]),
            Err(AgreedTargetError::ParameterName { name }),
        );
    }
    let name = "b".to_owned();
    assert_eq!(
        AgreedTarget::new("", "/a", &[("b", "1"), ("c", "2"), ("b", "3")]),
        Err(AgreedTargetError::RepeatedParameter { name }),
    );
    assert_eq!(
        AgreedTarget::new("", "/a", &[("jwt", "1")]),
        Err(AgreedTargetError::TokenParameter),
    );
}

// Properties.

/// Encodes like a browser that knows no better: all but letters and digits.
fn escaped(text: &str) -> String {
    percent_encode(text.as_bytes(), percent_encoding::NON_ALPHANUMERIC).to_string()
}

fn with_query<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let pairs = pairs
        .into_iter()
        .map(|(n, v)| format!("{}={}", escaped(n), escaped(v)));
    format!("/a?{}", pairs.collect::<Vec<_>>().join("&"))
}

/// One spelling out of the many that decode to `text`, chosen by `choices`.
fn spelled(text: &str, choices: &[u8]) -> String {
    let choices = choices.iter().chain(std::iter::repeat(&0));
    let spell = |(byte, choice): (u8, &u8)| {
        let plain = byte.is_ascii_alphanumeric() || b"-._~!$'()*,:@/?".contains(&byte);
        match choice % 3 {
            0 => format!("%{byte:02X}"),
            1 => format!("%{byte:02x}"),
            _ if byte == b' ' => "+".to_owned(),
            _ if plain => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        }
    };
    text.bytes().zip(choices).map(spell).collect()
}

/// Names with everything that orders or escapes differently.
fn name() -> impl Strategy<Value = String> {
    "[A-Za-z0-9 /;&=+%~_\\[\\]é宮\u{fffd}😀-]{1,5}".prop_filter("no token", |name| name != "jwt")
}

fn parameters() -> impl Strategy<Value = BTreeMap<String, String>> {
    prop::collection::btree_map(name(), "\\PC{0,8}", 0..6)
}

fn plain_path() -> impl Strategy<Value = String> {
    "(/[A-Za-z0-9_~-][A-Za-z0-9._~-]{0,5}){1,4}"
}

/// Text full of what parsers stumble over.
fn hostile() -> impl Strategy<Value = String> {
    prop_oneof![
        "\\PC*",
        "/?[/.%25eEfF?&;=+#\\[\\]{}aj宮 -]{0,40}",
        "/([a%26./;=?]|%2[eEfF05]){0,30}"
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..Default::default() })]

    #[test]
    fn order_of_distinct_parameters_does_not_count(
        (pairs, shuffled) in parameters().prop_flat_map(|pairs| {
            let list: Vec<_> = pairs.clone().into_iter().collect();
            (Just(pairs), Just(list).prop_shuffle())
        }),
    ) {
        let target = with_query(pairs.iter().map(|(n, v)| (n.as_str(), v.as_str())));
        let shuffled = with_query(shuffled.iter().map(|(n, v)| (n.as_str(), v.as_str())));
        for rule in RULES {
            prop_assert_eq!(canonical(rule, "GET", &target, ""), canonical(rule, "GET", &shuffled, ""));
        }
    }

    #[test]
    fn repeated_values_are_sorted_by_jira_and_kept_by_gitlab(
        values in prop::collection::vec("\\PC{0,4}", 1..6),
    ) {
        let target = with_query(values.iter().map(|v| ("a", v.as_str())));
        let joined = |values: &[String]| {
            let values = values.iter().map(|v| percent_encode(v.as_bytes(), RESERVED).to_string());
            format!("GET&/a&a={}", values.collect::<Vec<_>>().join(","))
        };
        let mut sorted = values.clone();
        sorted.sort_by_key(|value| value.encode_utf16().collect::<Vec<_>>());
        prop_assert_eq!(canonical(Rule::GitLab, "GET", &target, ""), joined(&values));
        prop_assert_eq!(canonical(Rule::JiraVerifies, "GET", &target, ""), joined(&sorted));
        prop_assert_eq!(canonical(Rule::JiraSigns, "GET", &target, ""), joined(&sorted));
    }

    #[test]
    fn any_text_survives_as_a_parameter(pairs in parameters()) {
        let target = parse(&with_query(pairs.iter().map(|(n, v)| (n.as_str(), v.as_str()))));
        for (name, value) in &pairs {
            prop_assert_eq!(target.query(name), Some(value.as_str()));
        }
    }

    #[test]
    fn spelling_of_a_query_does_not_count(
        name in name(), value in "\\PC{0,8}", choices in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let target = with_query([(name.as_str(), value.as_str())]);
        let respelled = format!("/a?{}={}", spelled(&name, &choices), spelled(&value, &choices));
        for rule in RULES {
            prop_assert_eq!(canonical(rule, "GET", &target, ""), canonical(rule, "GET", &respelled, ""));
        }
    }

    #[test]
    fn spelling_of_a_path_counts_for_all_but_jira_signing(path in "/[a-z ]{1,8}") {
        let encoded: String = path.replace(' ', "%20");
        let respelled = spelled(&path.replace('/', ""), &[]);
        let respelled = format!("/{respelled}");
        prop_assert_eq!(
            canonical(Rule::JiraSigns, "GET", &encoded, ""),
            canonical(Rule::JiraSigns, "GET", &respelled, ""),
        );
        prop_assert_eq!(canonical(Rule::JiraVerifies, "GET", &respelled, ""), format!("GET&{respelled}&"));
        prop_assert_eq!(canonical(Rule::GitLab, "GET", &respelled, ""), format!("GET&{respelled}&"));
    }

    #[test]
    fn a_base_path_is_as_if_it_were_not_there(
        base_path in plain_path(), path in plain_path(), pairs in parameters(),
    ) {
        let query = with_query(pairs.iter().map(|(n, v)| (n.as_str(), v.as_str())));
        let query = query.strip_prefix("/a").unwrap_or_default();
        let (bare, based) = (format!("{path}{query}"), format!("{base_path}{path}{query}"));
        for rule in RULES {
            prop_assert_eq!(
                canonical(rule, "GET", &bare, ""),
                canonical(rule, "GET", &based, &base_path),
            );
        }
    }

    #[test]
    fn a_canonical_form_is_its_own(path in plain_path(), pairs in parameters()) {
        let query = with_query(pairs.iter().map(|(n, v)| (n.as_str(), v.as_str())));
        let query = query.strip_prefix("/a").unwrap_or_default();
        for rule in RULES {
            let once = canonical(rule, "GET", &format!("{path}{query}"), "");
            let (path, query) = once
                .strip_prefix("GET&")
                .and_then(|rest| rest.split_once('&'))
                .expect("three parts");
            prop_assert_eq!(canonical(rule, "GET", &format!("{path}?{query}"), ""), once.clone());
        }
    }

    #[test]
    fn rules_agree_on_all_that_we_send(
        base_path in prop_oneof![Just(String::new()), plain_path()],
        path in plain_path(),
        pairs in prop::collection::vec(("[A-Za-z0-9_]{1,3}", "\\PC{0,8}"), 0..4),
    ) {
        let pairs: Vec<_> = pairs.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let Ok(agreed) = AgreedTarget::new(&base_path, &path, &pairs) else {
            let names: std::collections::BTreeSet<_> = pairs.iter().map(|(name, _)| name).collect();
            prop_assert!(names.len() < pairs.len() || names.contains(&"jwt"));
            return Ok(());
        };
        let target = Target::parse_strict(&agreed.path_and_query(), &[]);
        let target = target.expect("the front door takes what we send");
        prop_assert_eq!(target.refuse_encoded_slash(), Ok(()));
        for rule in RULES {
            prop_assert_eq!(rule.qsh("POST", &target, &base_path), agreed.qsh("post"));
        }
        for (name, value) in pairs {
            prop_assert_eq!(target.query(name), Some(value));
        }
    }

    #[test]
    fn nothing_makes_the_rules_panic(text in hostile(), method in "\\PC{0,4}", base in hostile()) {
        let parsed = Target::parse(&text);
        if let Ok(strict) = Target::parse_strict(&text, &[]) {
            prop_assert_eq!(&Ok(strict), &parsed);
        }
        if let Ok(target) = parsed {
            for rule in RULES {
                let found = rule.canonical(&method, &target, &base);
                prop_assert_eq!(rule.qsh(&method, &target, &base).as_str().len(), 64);
                let start = format!("{}&/", method.to_ascii_uppercase());
                prop_assert!(found.starts_with(&start));
            }
            prop_assert!(!jira_request_matches(&target, &method, &base, CONTEXT));
            prop_assert!(!gitlab_request_matches(&target, &method, &base, CONTEXT));
        }
        let _ = AgreedTarget::new(&base, &text, &[(&text, &base)]);
    }
}
