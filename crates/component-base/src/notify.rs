//! Tells systemd how a service of `Type=notify` is doing, by the datagram protocol of sd_notify(3). Elsewhere, without
//! `NOTIFY_SOCKET`, nothing happens.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::OnceLock;

/// The component that this process is. Where one process is all of them, none of them speaks for it.
static SERVICE: OnceLock<&'static str> = OnceLock::new();

/// Says that this process is the service of that name: its [`ready`] counts, that of others in the same process does
/// not.
pub fn serve_as(component: &'static str) {
    let _ = SERVICE.set(component);
}

/// The component does what it is there for, or waits for others and can be started after. To be called again when
/// the status changes.
pub fn ready(component: &str, status: &str) {
    send(component, &format!("READY=1\nSTATUS={status}"));
}

/// The component has begun to end.
pub fn stopping(component: &str) {
    send(component, "STOPPING=1");
}

fn send(component: &str, message: &str) {
    if SERVICE.get().is_none_or(|s| *s != component) {
        return;
    }
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET").filter(|s| !s.is_empty()) else { return };
    if let Err(e) = send_to(&socket, message) {
        tracing::warn!("systemd was not told {:?}: {e}", message.lines().next().unwrap_or_default());
    }
}

/// A name that begins with `@` is in the abstract name space.
fn send_to(socket: &OsStr, message: &str) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &address).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reaches_the_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let server = UnixDatagram::bind(&path).unwrap();
        send_to(path.as_os_str(), "READY=1\nSTATUS=serving").unwrap();
        let mut buffer = [0; 64];
        let n = server.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..n], b"READY=1\nSTATUS=serving");

        let name = format!("pilothouse-notify-{}", std::process::id());
        let server = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        send_to(OsStr::new(&format!("@{name}")), "STOPPING=1").unwrap();
        let n = server.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..n], b"STOPPING=1");
        assert!(send_to(dir.path().join("none").as_os_str(), "x").is_err());
    }
}
