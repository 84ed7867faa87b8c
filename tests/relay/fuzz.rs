//! The properties of `tests/fuzz`, without a fuzzer: all seeds, and the same variations of them in every run.
//! `tests/fuzz/run` lets libFuzzer look for more.

#[path = "../fuzz/src/lib.rs"]
mod properties;

use std::path::Path;

/// Variations of each property's seeds.
const VARIATIONS: usize = 2_000;

#[test]
fn no_seed_and_no_variation_of_one_breaks_a_promise() {
    for (name, property) in properties::ALL {
        let seeds = seeds(name);
        assert!(seeds.len() >= 3, "{name} has seeds");
        for seed in &seeds {
            property(seed);
        }
        let mut random = Random(0x2545_f491_4f6c_dd1d);
        for _ in 0..VARIATIONS {
            let input = vary(&seeds, &mut random);
            if std::panic::catch_unwind(|| property(&input)).is_err() {
                panic!("{name} fails for {:?}", String::from_utf8_lossy(&input));
            }
        }
    }
}

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz/seeds")
        .join(name);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("entry").path())
        .collect();
    files.sort();
    let read = |path| std::fs::read(path).expect("seed");
    files.into_iter().map(read).collect()
}

/// A seed with some bytes changed, dropped, doubled, or taken from another seed.
fn vary(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(4) {
        let at = random.below(input.len() + 1);
        let until = at + random.below(input.len() - at + 1).min(16);
        match random.below(5) {
            0 if at < input.len() => input[at] ^= 1 << random.below(8),
            1 => {
                const WORDS: [&str; 12] = [
                    "\"",
                    "{",
                    "}",
                    "[]",
                    "null",
                    "%2F",
                    "&",
                    "=",
                    "\\u0069",
                    ";",
                    "\n",
                    "\u{1f600}",
                ];
                let word = WORDS[random.below(WORDS.len())];
                input.splice(at..at, word.bytes());
            }
            2 => drop(input.drain(at..until)),
            3 => {
                let doubled = input[at..until].to_vec();
                input.splice(at..at, doubled);
            }
            _ => {
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len() + 1);
                let part = &other[from..];
                input.splice(at..at, part.iter().take(32).copied());
            }
        }
    }
    input
}

/// xorshift: the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}
