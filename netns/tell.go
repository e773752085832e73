package netns

import (
	"fmt"

	"golang.org/x/sys/unix"

	"meshnet/plan"
)

// Tell sends a message to who listens, in a container's network namespace, on an abstract Unix socket
// (unix(7): each network namespace has names of its own), and does not wait for anybody. The message
// must be short enough for the socket's buffer. [ErrGone] if the namespace is not there any more.
func Tell(s plan.Sandbox, socket string, message []byte) error {
	ns, err := openSandbox(s)
	if err != nil {
		return err
	}
	defer ns.Close()
	return within(ns, func() error {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("make socket: %w", err)
		}
		defer unix.Close(fd)
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: "@" + socket}); err != nil {
			return fmt.Errorf("connect to %s in the container: %w", socket, err)
		}
		if err := unix.Sendto(fd, message, unix.MSG_NOSIGNAL, nil); err != nil {
			return fmt.Errorf("write to %s in the container: %w", socket, err)
		}
		return nil
	})
}
