#![no_main]

#[expect(dead_code, reason = "one target looks at one property")]
#[path = "../properties.rs"]
mod properties;

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::pieces(data));
