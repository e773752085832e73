package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
)

// How an open file travels with a request. HTTP knows nothing of file descriptors, but the unix
// socket below it does: a message may carry them beside its bytes (SCM_RIGHTS, unix(7)). The client's
// connection adds the descriptor to the first bytes it writes, which are the request's; the server's
// connection reads with recvmsg and keeps what came until the handler takes it. One file a connection,
// so the client uses a new connection for each request that carries one.

// sendConn sends a file with its first write.
type sendConn struct {
	*net.UnixConn
	once sync.Once
	file *os.File
}

func (c *sendConn) Write(p []byte) (int, error) {
	var n int
	var err error
	first := false
	c.once.Do(func() {
		first = true
		n, _, err = c.WriteMsgUnix(p, syscall.UnixRights(int(c.file.Fd())), nil)
	})
	if !first || err != nil || n == len(p) {
		if !first {
			return c.UnixConn.Write(p)
		}
		return n, err
	}
	more, err := c.UnixConn.Write(p[n:])
	return n + more, err
}

// passConn keeps the first file that comes with the bytes it reads; others are closed.
type passConn struct {
	*net.UnixConn
	free func() // gives the connection's place back to the listener

	mu     sync.Mutex
	file   *os.File
	closed bool
}

// Read reads with recvmsg. The kernel drops descriptors that do not fit the buffer and marks the
// others close-on-exec.
func (c *passConn) Read(p []byte) (int, error) {
	var oob [64]byte
	n, oobn, _, _, err := c.ReadMsgUnix(p, oob[:syscall.CmsgSpace(4)])
	if oobn > 0 {
		c.keep(oob[:oobn])
	}
	if err != nil {
		return n, err
	}
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (c *passConn) keep(oob []byte) {
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return
	}
	for _, m := range messages {
		fds, err := syscall.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			c.mu.Lock()
			if c.file == nil && !c.closed {
				c.file = os.NewFile(uintptr(fd), "passed")
			} else {
				syscall.Close(fd)
			}
			c.mu.Unlock()
		}
	}
}

// take hands over the file that came, or nil. The caller closes it.
func (c *passConn) take() *os.File {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.file
	c.file = nil
	return f
}

func (c *passConn) Close() error {
	c.mu.Lock()
	if c.file != nil {
		c.file.Close()
		c.file = nil
	}
	first := !c.closed
	c.closed = true
	c.mu.Unlock()
	if first {
		c.free()
	}
	return c.UnixConn.Close()
}

// passListener accepts connections that can carry files, at most cap(slots) at a time.
type passListener struct {
	*net.UnixListener
	slots chan struct{}
}

func (l *passListener) Accept() (net.Conn, error) {
	l.slots <- struct{}{}
	c, err := l.AcceptUnix()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &passConn{UnixConn: c, free: func() { <-l.slots }}, nil
}

type connKey struct{}

// withConn is the http.Server's ConnContext.
func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// passed returns the file that came with a request, or nil. The caller closes it.
func passed(r *http.Request) *os.File {
	if c, ok := r.Context().Value(connKey{}).(*passConn); ok {
		return c.take()
	}
	return nil
}

// dial opens the socket; file, which may be nil, goes with the first bytes written.
func dial(ctx context.Context, path string, file *os.File) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if errors.Is(err, os.ErrPermission) {
		return nil, fmt.Errorf("%w: %s; be root or in group %s", ErrForbidden, path, Group)
	}
	if err != nil {
		return nil, fmt.Errorf("%w on %s; start it with meshnet up -d", ErrNoDaemon, path)
	}
	if file == nil {
		return c, nil
	}
	return &sendConn{UnixConn: c.(*net.UnixConn), file: file}, nil
}
