//! Where one frame of WebSocket ends and the next begins (RFC 6455, 5.2): only there may something be
//! said to a client in the server's stead. Reads lengths, never what is in a frame.

/// "Going away" (1001), as a server says it: nothing is masked.
pub(super) const GOING_AWAY: [u8; 4] = [0x88, 0x02, 0x03, 0xe9];

/// Two bytes, up to eight of a length, up to four of a mask.
const LONGEST_HEAD: usize = 14;

#[derive(Debug, Default)]
pub(super) struct Frames {
    head: [u8; LONGEST_HEAD],
    /// How much of the head has come.
    have: usize,
    /// What is missing of the payload.
    left: u64,
}

impl Frames {
    pub(super) fn is_between(&self) -> bool {
        self.have == 0 && self.left == 0
    }

    /// Goes through `bytes`, or only to the next place between two frames; returns how far it came.
    pub(super) fn pass(&mut self, bytes: &[u8], to_next: bool) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            if self.left > 0 {
                let rest = bytes.len() - at;
                let step = usize::try_from(self.left).map_or(rest, |left| left.min(rest));
                self.left -= step as u64;
                at += step;
            } else {
                self.head[self.have] = bytes[at];
                self.have += 1;
                at += 1;
                if let Some(payload) = self.payload() {
                    self.have = 0;
                    self.left = payload;
                }
            }
            if to_next && self.is_between() {
                break;
            }
        }
        at
    }

    /// The payload's length, once the head is whole.
    fn payload(&self) -> Option<u64> {
        let head = &self.head[..self.have];
        let second = *head.get(1)?;
        let mask = if second & 0x80 != 0 { 4 } else { 0 };
        let (length, read): (u64, usize) = match second & 0x7f {
            126 => (
                u64::from(u16::from_be_bytes(*head.get(2..)?.first_chunk()?)),
                4,
            ),
            127 => (u64::from_be_bytes(*head.get(2..)?.first_chunk()?), 10),
            short => (u64::from(short), 2),
        };
        (head.len() == read + mask).then_some(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(head: &[u8], payload: usize) -> Vec<u8> {
        [head, &vec![0xff; payload]].concat()
    }

    #[test]
    fn frames_end_where_their_lengths_say() {
        let frames = [
            frame(&[0x81, 0], 0),
            frame(&[0x81, 5], 5),
            frame(&[0x81, 0x85, 1, 2, 3, 4], 5),
            frame(&[0x82, 126, 1, 0], 256),
            frame(&[0x82, 0xfe, 1, 0, 1, 2, 3, 4], 256),
            frame(&[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0], 65_536),
            frame(&GOING_AWAY[..2], 2),
        ];
        let all = frames.concat();
        for step in [1, 2, 3, 7, 64, all.len()] {
            let mut reader = Frames::default();
            let (mut at, mut ends) = (0, Vec::new());
            while at < all.len() {
                let end = all.len().min(at + step);
                at += reader.pass(&all[at..end], true);
                if reader.is_between() {
                    ends.push(at);
                }
            }
            let want = frames.iter().scan(0, |sum, f| {
                *sum += f.len();
                Some(*sum)
            });
            assert_eq!(ends, want.collect::<Vec<_>>(), "by {step}");
        }
        let mut reader = Frames::default();
        assert_eq!(reader.pass(&all, false), all.len());
        assert!(reader.is_between());
    }
}
