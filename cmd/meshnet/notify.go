package main

import (
	"fmt"
	"net"
	"os"
)

// notify tells a service manager something, where one wants to know: sd_notify(3). Programs that the
// daemon starts do not inherit the wish.
type notify struct{ to string }

// newNotify takes the socket's address from the environment.
func newNotify() notify {
	n := notify{os.Getenv("NOTIFY_SOCKET")}
	os.Unsetenv("NOTIFY_SOCKET")
	return n
}

// say sends assignments like READY=1, a line each. A manager that does not listen is no reason to stop.
func (n notify) say(lines string) error {
	if n.to == "" {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.to, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("tell the service manager: %w", err)
	}
	defer c.Close()
	if _, err := c.Write([]byte(lines)); err != nil {
		return fmt.Errorf("tell the service manager: %w", err)
	}
	return nil
}
