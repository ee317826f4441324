//! Generic netlink: requests to a family of the kernel's, by name, and their answers. Layout of messages and
//! attributes: `linux/netlink.h`, `linux/genetlink.h`.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
/// The family that knows the others.
const CONTROLLER: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const NESTED: u16 = 0x8000;
/// The two high bits of an attribute's type are flags.
const TYPE_MASK: u16 = 0x3fff;
const HEADER: usize = 16;
const GENERIC_HEADER: usize = 4;
/// The kernel's messages are at most half of it.
const BUFFER: usize = 64 << 10;
/// Seconds to wait for an answer.
const PATIENCE: i64 = 5;

/// Attributes as they are sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    /// Adds one of raw bytes.
    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        // An attribute is at most 64 KiB by its format; ours are some bytes.
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Adds a number.
    pub fn u16(self, kind: u16, value: u16) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// Adds a number.
    pub fn u32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// Adds a text, with its zero at the end.
    pub fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// Adds attributes in an attribute.
    pub fn nested(self, kind: u16, inner: Attributes) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }

    /// What was put together.
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }
}

/// Attributes as they were received: type and value. What is cut off at the end is left out.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The number at an offset, in the machine's order.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The number at an offset, in the machine's order.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn message(kind: u16, flags: u16, sequence: u32, command: u8, attributes: &Attributes) -> Vec<u8> {
    let length = HEADER + GENERIC_HEADER + attributes.0.len();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend([command, 1, 0, 0]);
    bytes.extend(&attributes.0);
    bytes
}

/// Takes what one read brought: adds the attributes of answers to `answers`; whether that was all.
fn take(mut bytes: &[u8], sequence: u32, answers: &mut Vec<Vec<u8>>) -> io::Result<bool> {
    let cut = || io::Error::new(io::ErrorKind::InvalidData, "netlink: a message is cut off");
    while !bytes.is_empty() {
        let length = u32_at(bytes, 0).and_then(|l| usize::try_from(l).ok()).ok_or_else(cut)?;
        let message = bytes.get(..length).filter(|m| m.len() >= HEADER).ok_or_else(cut)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        if u32_at(message, 8) != Some(sequence) {
            continue;
        }
        match u16_at(message, 4) {
            // Both end with a negated error number, or 0.
            Some(NLMSG_ERROR | NLMSG_DONE) => {
                let code = u32_at(message, HEADER).map_or(0, u32::cast_signed);
                return if code == 0 { Ok(true) } else { Err(io::Error::from_raw_os_error(-code)) };
            }
            _ => answers.extend(message.get(HEADER + GENERIC_HEADER..).map(<[u8]>::to_vec)),
        }
    }
    Ok(false)
}

/// A socket to one family.
#[derive(Debug)]
pub struct Family {
    socket: OwnedFd,
    id: u16,
    sequence: u32,
}

impl Family {
    /// Finds the family. The kernel loads its module where it can; without it the error is that of "no such file".
    pub fn open(name: &str) -> io::Result<Family> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkGeneric,
        )?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE))?;
        connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        let mut family = Family { socket, id: CONTROLLER, sequence: 0 };
        let answers = family.exchange(ACK, GET_FAMILY, &Attributes::default().text(FAMILY_NAME, name))?;
        let mut found = answers.iter().flat_map(|a| attributes(a));
        family.id = found
            .find(|(kind, _)| *kind == FAMILY_ID)
            .and_then(|(_, id)| u16_at(id, 0))
            .ok_or_else(|| io::Error::from_raw_os_error(nix::libc::ENOENT))?;
        Ok(family)
    }

    /// One request, which the kernel carries out or refuses.
    pub fn request(&mut self, command: u8, attributes: &Attributes) -> io::Result<()> {
        self.exchange(ACK, command, attributes).map(drop)
    }

    /// All objects that a request lists: the attributes of each.
    pub fn dump(&mut self, command: u8, attributes: &Attributes) -> io::Result<Vec<Vec<u8>>> {
        self.exchange(DUMP, command, attributes)
    }

    fn exchange(&mut self, flags: u16, command: u8, attributes: &Attributes) -> io::Result<Vec<Vec<u8>>> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = message(self.id, REQUEST | flags, self.sequence, command, attributes);
        send(self.socket.as_raw_fd(), &request, MsgFlags::empty())?;
        let mut answers = Vec::new();
        let mut buffer = vec![0; BUFFER];
        loop {
            let read = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            if take(&buffer[..read], self.sequence, &mut answers)? {
                return Ok(answers);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back_as_they_were_put() {
        let sent = Attributes::default()
            .u16(1, 2)
            .text(6, "rr")
            .nested(3, Attributes::default().u32(4, 5))
            .bytes(7, &[]);
        assert_eq!(sent.as_slice().len(), 8 + 8 + 12 + 4);
        let got: Vec<_> = attributes(sent.as_slice()).collect();
        assert_eq!(got[0], (1, &2u16.to_ne_bytes()[..]));
        assert_eq!(got[1], (6, &b"rr\0"[..]));
        assert_eq!(attributes(got[2].1).collect::<Vec<_>>(), [(4, &5u32.to_ne_bytes()[..])]);
        assert_eq!((got[2].0, got[3], got.len()), (3, (7, &[][..]), 4));
        // A length that is too short or too long ends the list.
        assert_eq!(attributes(&[1, 0, 1, 0]).count(), 0);
        assert_eq!(attributes(&[9, 0, 1, 0, 0, 0]).count(), 0);
    }

    #[test]
    fn answers_end_with_done_or_an_error() {
        let data = message(30, 0, 7, 1, &Attributes::default().u16(1, 2));
        let mut done = message(NLMSG_DONE, 0, 7, 0, &Attributes::default());
        let of_another = message(30, 0, 6, 1, &Attributes::default().u16(1, 2));
        let mut answers = Vec::new();
        assert!(!take(&[data.clone(), of_another].concat(), 7, &mut answers).unwrap());
        done[HEADER..].fill(0);
        assert!(take(&[data.clone(), done.clone()].concat(), 7, &mut answers).unwrap());
        assert_eq!(answers, vec![Attributes::default().u16(1, 2).0; 2]);
        done[HEADER..].copy_from_slice(&(-2i32).to_ne_bytes());
        assert_eq!(take(&done, 7, &mut answers).unwrap_err().raw_os_error(), Some(2));
        assert!(take(&data[..10], 7, &mut answers).is_err());
        assert!(take(&[0; 16], 7, &mut answers).is_err());
    }

    #[test]
    fn the_kernel_answers_for_a_family_it_has_and_one_it_has_not() {
        let controller = Family::open("nlctrl").unwrap();
        assert_eq!(controller.id, CONTROLLER);
        assert_eq!(Family::open("no-such").unwrap_err().raw_os_error(), Some(2));
    }
}
