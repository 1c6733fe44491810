//! Where one HTTP/1.1 answer ends and whether it was a good one: all that a load generator must
//! know. Pure, and as cheap as that allows. Knows bodies of a stated length and chunked ones.

use anyhow::{Context as _, Result};

/// An answer at the front of what was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// Bytes of head and body.
    pub length: usize,
}

/// The first answer in `read`; `None` until all of it is there.
pub fn first(read: &[u8]) -> Result<Option<Answer>> {
    let Some(head) = find(read, b"\r\n\r\n") else {
        return Ok(None);
    };
    let body = head + 4;
    let lines = std::str::from_utf8(&read[..head]).context("a head that is no text")?;
    let mut lines = lines.split("\r\n");
    let status = lines.next().unwrap_or_default();
    let status = status.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.context("no status line")?;
    let mut length = None;
    for line in lines {
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        if name.eq_ignore_ascii_case("content-length") {
            length = Some(value.trim().parse().context("content-length")?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            let end = chunked(&read[body..])?;
            return Ok(end.map(|end| Answer {
                status,
                length: body + end,
            }));
        }
    }
    let length: usize = length.context("an answer that does not say its length")?;
    let answer = Answer {
        status,
        length: body + length,
    };
    Ok((read.len() >= answer.length).then_some(answer))
}

/// Where a chunked body without trailers ends.
fn chunked(body: &[u8]) -> Result<Option<usize>> {
    let mut at = 0;
    loop {
        let Some(line) = find(&body[at..], b"\r\n") else {
            return Ok(None);
        };
        let size = std::str::from_utf8(&body[at..at + line])?;
        let size = usize::from_str_radix(size, 16).context("the size of a chunk")?;
        at += line + 2 + size + 2;
        if at > body.len() {
            return Ok(None);
        }
        if size == 0 {
            return Ok(Some(at));
        }
    }
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_where_it_says() {
        let plain = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbox";
        let chunked = "HTTP/1.1 503 No\r\ntransfer-encoding: chunked\r\n\r\n3\r\nbox\r\n0\r\n\r\n";
        for (text, status) in [(plain, 200), (chunked, 503)] {
            let answer = Answer {
                status,
                length: text.len(),
            };
            let more = format!("{text}HTTP/1.1 ");
            assert_eq!(first(more.as_bytes()).unwrap(), Some(answer));
            for cut in 0..text.len() {
                assert_eq!(first(&text.as_bytes()[..cut]).unwrap(), None, "{cut}");
            }
        }
    }

    #[test]
    fn what_cannot_be_followed_is_an_error() {
        for text in [
            "HTTP/1.1 200 OK\r\n\r\n",
            "SSH-2.0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        ] {
            assert!(first(text.as_bytes()).is_err(), "{text}");
        }
    }
}
