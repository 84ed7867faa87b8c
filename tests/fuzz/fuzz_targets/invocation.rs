#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| jira_connect_proxy_fuzz::invocation(data));
