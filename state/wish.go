package state

import (
	"net/netip"
	"time"

	"meshnet/crdt"
)

// Wish is what a person, a script or Docker asks of this host. It is kept on this host's disk and
// survives everything.
type Wish interface{ wish() }

// Create wishes for a network.
type Create struct {
	Name      string
	Subnet    netip.Prefix // invalid: one is chosen that overlaps nothing any node knows
	Gateway   netip.Addr   // invalid: the first address
	NoGateway bool
	Internal  bool
	BlockBits uint8
	MTU       uint32
	Reserve   []Range
	Labels    []Label
	Force     bool
}

// Remove wishes a network away.
type Remove struct {
	Network NetworkID
	Force   bool
}

// Attach wishes a container onto a network. It is what an attachment is on this host: the endpoint
// record that others see is derived from it.
type Attach struct {
	ID        EndpointID // zero: minted; twice the same container and network is the same endpoint
	Network   NetworkID
	Container string // the name people know it by
	Source    Source
	Addr      netip.Addr // invalid: any
	MAC       MAC        // zero: from the address
	IfName    string     // empty: the first free ethN
	Names     []string
	// NoDefaultRoute leaves the container's default route alone.
	NoDefaultRoute bool
	// Given is the name that its interface got where none was wished for. It gets that again if it is
	// free.
	Given string
	// Publish lists the ports of this host that lead to it, sorted by (host port, protocol).
	Publish []Published
}

// Detach wishes an attachment away.
type Detach struct{ ID EndpointID }

// Name says what name the interface of an attachment got.
type Name struct {
	ID    EndpointID
	Given string
}

// Report says that a container's sandbox went (Down) or came back.
type Report struct {
	ID   EndpointID
	Down bool
}

// Expel wishes a dead node away for good. Heir, if it is set, inherits what no other node is left to.
type Expel struct {
	Node NodeID
	Heir NodeID
}

// Withdraw wishes this node away: its containers are detached, its addresses handed on.
type Withdraw struct{}

// Publish wishes for the ports of this host that lead to an attachment: these, and no others.
type Publish struct {
	ID    EndpointID
	Ports []Published
}

func (Expel) wish()    {}
func (Withdraw) wish() {}
func (Create) wish()   {}
func (Remove) wish()   {}
func (Attach) wish()   {}
func (Detach) wish()   {}
func (Name) wish()     {}
func (Report) wish()   {}
func (Publish) wish()  {}

// SourceKind tells how a container's network namespace is found again.
type SourceKind uint8

const (
	// SourceDocker: by container id.
	SourceDocker SourceKind = iota + 1
	// SourcePath: by a path that names the namespace.
	SourcePath
	// SourceProcess: by a process id and its start time.
	SourceProcess
	// SourceHost: the host itself, which has an address on the network (meshnet expose).
	SourceHost
)

// Source is where a container's network namespace comes from. Inode keeps a recycled path or pid
// from being taken for the one that was meant; for Docker it is asked anew at each start.
type Source struct {
	Kind    SourceKind
	Docker  string // container id, 64 hexadecimal digits
	Path    string
	PID     uint32
	Started uint64 // clock ticks since boot, field 22 of /proc/PID/stat
	Inode   uint64 // of the namespace, for SourcePath and SourceProcess
}

// Outcome is what became of a wish.
type Outcome struct {
	Network  NetworkID
	Endpoint EndpointID
	Addr     netip.Addr
	// Version is the first view that holds it.
	Version uint64
	// Again: it was so already.
	Again bool
}

// Liveness is what the failure detector holds of a peer.
type Liveness uint8

const (
	// Alive answers.
	Alive Liveness = iota
	// Suspect has not answered a probe.
	Suspect
	// Dead has not refuted its suspicion.
	Dead
	// Left said so itself.
	Left
)

// String returns alive, suspect, dead or left.
func (l Liveness) String() string {
	return [...]string{"alive", "suspect", "dead", "left"}[l&3]
}

// Peer is a member of the mesh as this node sees it now. It never enters a plan.
type Peer struct {
	ID      NodeID
	Name    string
	Addr    netip.Addr
	State   Liveness
	RTT     time.Duration // zero: not measured
	Version string
	Since   time.Time // of State
	Self    bool
}

// Path is what frames sent to a peer through the encapsulation say of the way to it.
type Path struct {
	Up   bool
	RTT  time.Duration
	Loss float64 // part of the last probes that was not answered, 0 to 1
}

// Agreement is what all members said when asked for their digest.
type Agreement struct {
	Digest   [16]byte
	Alive    int // members that are alive, this one included
	Known    int // nodes that the state names, alive or not
	Agreeing int // alive members with this digest, this one included
	Differ   []NodeID
	Silent   []NodeID
}

// Lost is a node that was given up for good.
type Lost struct {
	Node  NodeID
	Epoch crdt.Epoch // up to which
	Name  string     // what people called it; empty: not known
}

// Quarantined is a range of addresses that belonged to a node that was given up, until it is inherited.
type Quarantined struct {
	Network NetworkID
	Prefix  netip.Prefix
	Node    NodeID
	Name    string // what people called it
	// Heir is who will have it; 0: nobody is left, and a person has to name one.
	Heir NodeID
	// Left is how long it rests at least.
	Left time.Duration
	// Waits, on the heir itself only, is who has not said yet that it knows.
	Waits []NodeID
}
