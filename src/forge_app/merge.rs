//! Three versions of a text into one, by lines: what one side changed is taken, what both changed alike is taken once.

/// Lines beyond which nobody waits for the comparison.
const LINES_MAX: usize = 2_000;

/// Puts the changes from `base` to `theirs` into `ours`. `None`: both changed the same place in different ways.
pub(super) fn merge(base: &str, ours: &str, theirs: &str) -> Option<String> {
    let [base, ours, theirs] = [base, ours, theirs].map(lines);
    if [&base, &ours, &theirs]
        .iter()
        .any(|text| text.len() > LINES_MAX)
    {
        return None;
    }
    let our_places = places(&base, &ours);
    let their_places = places(&base, &theirs);
    let mut merged = String::new();
    let (mut at_base, mut at_ours, mut at_theirs) = (0, 0, 0);
    loop {
        // The next line that all three have, with what lies before it in each.
        let next = (at_base..base.len()).find_map(|line| {
            let ours = our_places.get(line).copied().flatten()?;
            let theirs = their_places.get(line).copied().flatten()?;
            Some((line, ours, theirs))
        });
        let (to_base, to_ours, to_theirs) = next.unwrap_or((base.len(), ours.len(), theirs.len()));
        let base_part = base.get(at_base..to_base)?;
        let our_part = ours.get(at_ours..to_ours)?;
        let their_part = theirs.get(at_theirs..to_theirs)?;
        let part = if our_part == base_part {
            their_part
        } else if their_part == base_part || our_part == their_part {
            our_part
        } else {
            return None;
        };
        merged.extend(part.iter().copied());
        let Some((line, our_line, their_line)) = next else {
            return Some(merged);
        };
        merged.push_str(base.get(line)?);
        (at_base, at_ours, at_theirs) = (line + 1, our_line + 1, their_line + 1);
    }
}

fn lines(text: &str) -> Vec<&str> {
    text.split_inclusive('\n').collect()
}

/// For each line of `base` its place in `other`, by a longest common subsequence.
fn places(base: &[&str], other: &[&str]) -> Vec<Option<usize>> {
    // `longest[i][j]`: of what is left from line i and line j on.
    let mut longest = vec![vec![0_u32; other.len() + 1]; base.len() + 1];
    let at = |longest: &[Vec<u32>], i: usize, j: usize| {
        longest
            .get(i)
            .and_then(|row| row.get(j))
            .copied()
            .unwrap_or_default()
    };
    for (i, base_line) in base.iter().enumerate().rev() {
        for (j, other_line) in other.iter().enumerate().rev() {
            let length = if base_line == other_line {
                at(&longest, i + 1, j + 1) + 1
            } else {
                at(&longest, i + 1, j).max(at(&longest, i, j + 1))
            };
            if let Some(cell) = longest.get_mut(i).and_then(|row| row.get_mut(j)) {
                *cell = length;
            }
        }
    }
    let mut places = vec![None; base.len()];
    let (mut i, mut j) = (0, 0);
    while let (Some(base_line), Some(other_line)) = (base.get(i), other.get(j)) {
        if base_line == other_line {
            if let Some(place) = places.get_mut(i) {
                *place = Some(j);
            }
            (i, j) = (i + 1, j + 1);
        } else if at(&longest, i + 1, j) >= at(&longest, i, j + 1) {
            i += 1;
        } else {
            j += 1;
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn changes_in_different_places_come_together() {
        let base = "a\nb\nc\nd\ne\n";
        for (ours, theirs, merged) in [
            (
                "a\nb\nc\nd\ne\n",
                "a\nB\nc\nd\ne\n",
                Some("a\nB\nc\nd\ne\n"),
            ),
            (
                "A\nb\nc\nd\ne\n",
                "a\nb\nc\nD\ne\n",
                Some("A\nb\nc\nD\ne\n"),
            ),
            (
                "b\nc\nd\ne\n",
                "a\nb\nc\nd\ne\nf\n",
                Some("b\nc\nd\ne\nf\n"),
            ),
            (
                "a\nb\nX\nd\ne\n",
                "a\nb\nX\nd\ne\n",
                Some("a\nb\nX\nd\ne\n"),
            ),
            ("a\nb\nX\nd\ne\n", "a\nb\nY\nd\ne\n", None),
            // The operator took out what the news change.
            ("a\nb\nd\ne\n", "a\nb\nC\nd\ne\n", None),
            ("", "a\nb\nc\nd\ne\nf\n", None),
        ] {
            assert_eq!(
                merge(base, ours, theirs).as_deref(),
                merged,
                "{ours:?} {theirs:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn who_changed_nothing_decides_nothing(base in "([abc]\n){0,12}", other in "([abc]\n){0,12}") {
            prop_assert_eq!(merge(&base, &base, &other), Some(other.clone()));
            prop_assert_eq!(merge(&base, &other, &base), Some(other.clone()));
            prop_assert_eq!(merge(&base, &other, &other), Some(other));
        }

        #[test]
        fn a_line_of_the_operators_is_never_lost(
            base in "([abc]\n){0,12}", theirs in "([abcd]\n){0,12}", at in 0_usize..13,
        ) {
            let mut ours: Vec<&str> = lines(&base);
            ours.insert(at.min(ours.len()), "mine\n");
            if let Some(merged) = merge(&base, &ours.concat(), &theirs) {
                prop_assert!(merged.contains("mine\n"));
            }
        }
    }
}
