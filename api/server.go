package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"meshnet/agent"
	"meshnet/state"
)

const (
	// bodyMax bounds a request's body, bytes.
	bodyMax = 64 << 10
	// headMax bounds a request's header, bytes.
	headMax = 8 << 10
	// readMax bounds how long a request may take to arrive, writeMax its answer to be fetched.
	readMax, writeMax = 5 * time.Second, 5 * time.Second
	// idleMax: a connection without a request is closed then.
	idleMax = 30 * time.Second
	// connsMax: more connections wait until one ends.
	connsMax = 256
	// waitMax bounds the wait that a request may ask for.
	waitMax = 10 * time.Minute
	// endMax: a daemon that stops lets requests finish for so long.
	endMax = 2 * time.Second
)

// Door is what a server opens to the command line. Implemented by agent.Agent and by a model.
type Door interface {
	Status(context.Context) agent.Status
	Nodes() []agent.Node
	Networks() []agent.Network
	Inspect(name string) (agent.Network, error)
	PS(all bool) []agent.Attachment
	Create(context.Context, state.Create) (agent.Network, error)
	RemoveNetwork(ctx context.Context, name string, force bool) (agent.Network, error)
	Attach(context.Context, agent.AttachRequest) (agent.Attachment, []string, error)
	Detach(ctx context.Context, r agent.Ref, network string) ([]agent.Attachment, error)
	Spaces(ctx context.Context, network string) ([]agent.Space, error)
	Conflicts() []agent.Conflict
	RemovePeer(ctx context.Context, name, heir string, force bool) (removed state.Lost, again bool, err error)
	Leave(context.Context) error
	portDoor
	eventDoor
}

// Config is what a server works with.
type Config struct {
	Path     string // of the socket; required
	Door     Door   // required
	Version  string
	RunDir   string // told to who stops the daemon
	StateDir string
	OVSDB    string
	Settings []Setting // in force, for config show
	Stop     func()    // ends the daemon; required; called at most once a request
	Log      *slog.Logger
}

// Server answers on a unix socket. [Listen] makes one.
type Server struct {
	c        Config
	listener *net.UnixListener
}

// Listen takes the socket: mode 0660, owner root. What a dead daemon left is replaced, a living
// one's is not: [ErrRunning].
func Listen(c Config) (*Server, error) {
	if c.Path == "" || c.Door == nil || c.Stop == nil || c.Log == nil {
		return nil, errors.New("listen: path, door, stop and log are required")
	}
	if err := os.MkdirAll(filepath.Dir(c.Path), 0o755); err != nil {
		return nil, fmt.Errorf("make directory of the socket: %w", err)
	}
	if conn, err := net.DialTimeout("unix", c.Path, readMax); err == nil {
		conn.Close()
		return nil, fmt.Errorf("listen on %s: %w", c.Path, ErrRunning)
	} else if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listen: %w; give another --socket", err)
	}
	if err := os.Remove(c.Path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove socket of a dead daemon: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: c.Path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen: %w; give another --socket", err)
	}
	if err := permit(c.Path); err != nil {
		l.Close()
		return nil, err
	}
	return &Server{c: c, listener: l}, nil
}

// Group may use the socket besides root, where it exists.
const Group = "meshnet"

// permit lets root and the group use the socket.
func permit(path string) error {
	if g, err := user.LookupGroup(Group); err == nil {
		gid, err := strconv.Atoi(g.Gid)
		if err == nil {
			err = os.Chown(path, -1, gid)
		}
		if err != nil {
			return fmt.Errorf("give socket to group %s: %w", Group, err)
		}
	}
	if err := os.Chmod(path, 0o660); err != nil {
		return fmt.Errorf("set mode of socket: %w", err)
	}
	return nil
}

// Serve answers until ctx ends, then lets requests finish for a moment and removes the socket.
func (s *Server) Serve(ctx context.Context) error {
	server := &http.Server{
		Handler:           s.routes(),
		ReadHeaderTimeout: readMax,
		IdleTimeout:       idleMax,
		MaxHeaderBytes:    headMax,
		ConnContext:       withConn,
		ErrorLog:          slog.NewLogLogger(s.c.Log.Handler(), slog.LevelDebug),
	}
	ended := make(chan error, 1)
	go func() {
		ended <- server.Serve(&passListener{UnixListener: s.listener, slots: make(chan struct{}, connsMax)})
	}()
	select {
	case err := <-ended:
		return fmt.Errorf("serve %s: %w", s.c.Path, err)
	case <-ctx.Done():
	}
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), endMax)
	defer cancel()
	if err := server.Shutdown(late); err != nil {
		server.Close()
	}
	<-ended
	return nil
}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	door := s.c.Door
	mux.HandleFunc("GET /v1/version", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, Version{s.c.Version})
	})
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		answer(w, statusOf(door.Status(r.Context())))
	})
	mux.HandleFunc("GET /v1/settings", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, s.c.Settings)
	})
	mux.HandleFunc("GET /v1/nodes", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, each(door.Nodes(), nodeOf))
	})
	mux.HandleFunc("GET /v1/networks", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, each(door.Networks(), networkOf))
	})
	mux.HandleFunc("POST /v1/networks", s.create)
	mux.HandleFunc("GET /v1/networks/{name}", func(w http.ResponseWriter, r *http.Request) {
		n, err := door.Inspect(r.PathValue("name"))
		reply(w, networkOf(n), err)
	})
	mux.HandleFunc("DELETE /v1/networks/{name}", func(w http.ResponseWriter, r *http.Request) {
		n, err := door.RemoveNetwork(r.Context(), r.PathValue("name"), r.FormValue("force") == "true")
		reply(w, networkOf(n), err)
	})
	mux.HandleFunc("GET /v1/attachments", func(w http.ResponseWriter, r *http.Request) {
		answer(w, each(door.PS(r.FormValue("all") == "true"), attachmentOf))
	})
	mux.HandleFunc("GET /v1/ipam", func(w http.ResponseWriter, r *http.Request) {
		spaces, err := door.Spaces(r.Context(), r.FormValue("network"))
		reply(w, each(spaces, spaceOf), err)
	})
	mux.HandleFunc("GET /v1/conflicts", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, each(door.Conflicts(), conflictOf))
	})
	mux.HandleFunc("DELETE /v1/nodes/{name}", func(w http.ResponseWriter, r *http.Request) {
		node, again, err := door.RemovePeer(r.Context(), r.PathValue("name"), r.FormValue("heir"), r.FormValue("force") == "true")
		reply(w, Removed{Node: node.Name, NodeID: node.Node.String(), Again: again}, err)
	})
	mux.HandleFunc("POST /v1/leave", func(w http.ResponseWriter, r *http.Request) {
		err := door.Leave(r.Context())
		reply(w, s.stopping(), err)
	})
	mux.HandleFunc("POST /v1/attach", s.attach)
	mux.HandleFunc("POST /v1/detach", s.detach)
	mux.HandleFunc("POST /v1/stop", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, s.stopping())
		s.c.Stop()
	})
	s.portRoutes(mux)
	s.eventRoutes(mux)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusNotFound)
		answer(w, Error{fmt.Sprintf("%s %s: no such path; the daemon is of another version", r.Method, r.URL.Path), Failed})
	})
	return mux
}

func (s *Server) stopping() Stopping {
	return Stopping{PID: os.Getpid(), RunDir: s.c.RunDir, StateDir: s.c.StateDir, OVSDB: s.c.OVSDB}
}

func (s *Server) create(w http.ResponseWriter, r *http.Request) {
	var ask CreateRequest
	if !read(w, r, &ask) {
		return
	}
	wish, err := ask.wish()
	if err != nil {
		reply(w, nil, err)
		return
	}
	n, err := s.c.Door.Create(r.Context(), wish)
	reply(w, networkOf(n), err)
}

func (s *Server) attach(w http.ResponseWriter, r *http.Request) {
	var ask AttachRequest
	if !read(w, r, &ask) {
		return
	}
	ns := passed(r)
	if ns != nil {
		defer ns.Close()
	}
	req, err := ask.request(ns)
	if err != nil {
		reply(w, nil, err)
		return
	}
	at, waiting, err := s.c.Door.Attach(r.Context(), req)
	reply(w, Attached{Attachment: attachmentOf(at), Waiting: waiting}, err)
}

func (s *Server) detach(w http.ResponseWriter, r *http.Request) {
	var ask DetachRequest
	if !read(w, r, &ask) {
		return
	}
	ns := passed(r)
	if ns != nil {
		defer ns.Close()
	}
	ref, err := ask.Container.ref(ns)
	if err != nil {
		reply(w, nil, err)
		return
	}
	off, err := s.c.Door.Detach(r.Context(), ref, ask.Network)
	reply(w, Detached{each(off, attachmentOf)}, err)
}

// read decodes a request's body, or answers why not.
func read(w http.ResponseWriter, r *http.Request, into any) bool {
	control := http.NewResponseController(w)
	control.SetReadDeadline(time.Now().Add(readMax))
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, bodyMax)).Decode(into)
	control.SetReadDeadline(time.Time{})
	if err != nil {
		reply(w, nil, fmt.Errorf("%w request: %w", state.ErrInvalid, err))
		return false
	}
	return true
}

// reply answers with a value, or with why there is none.
func reply(w http.ResponseWriter, v any, err error) {
	if err == nil {
		answer(w, v)
		return
	}
	code, status := kindOf(err)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	answer(w, Error{err.Error(), code})
}

// answer writes a value. Who does not fetch it loses the connection.
func answer(w http.ResponseWriter, v any) {
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeMax))
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}
