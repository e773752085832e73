package api

import (
	"time"
)

// Node is a member of the mesh.
type Node struct {
	ID      string     `json:"id"`
	Name    string     `json:"name"`
	Address string     `json:"address"`
	State   string     `json:"state"`  // alive, suspect, dead or left
	Tunnel  string     `json:"tunnel"` // up, down, or empty for the node that answers
	RTT     float64    `json:"rtt"`    // seconds, through the tunnel if it is probed; 0: not measured
	Loss    *float64   `json:"loss"`   // part of the last probes through the tunnel that was lost; null: not probed
	Self    bool       `json:"self"`
	Version string     `json:"version"`
	Since   *time.Time `json:"since"` // of State; null: not known
}

// Self is the node that answers.
type Self struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Address string `json:"address"`
	Version string `json:"version"`
}

// Status is what a node says of itself and of the mesh.
type Status struct {
	Node          Self     `json:"node"`
	Converged     bool     `json:"converged"`
	Digest        string   `json:"digest"` // equal on two nodes exactly when their merged state is
	NodesAlive    int      `json:"nodes_alive"`
	NodesKnown    int      `json:"nodes_known"`
	NodesAgreeing int      `json:"nodes_agreeing"`
	Differ        []string `json:"differ"` // names of alive nodes with another digest
	Silent        []string `json:"silent"` // names of alive nodes that gave none in time
	Datapath      string   `json:"datapath"`
	Encap         string   `json:"encap"`
	Transport     string   `json:"transport"`
	Why           string   `json:"why"` // of this transport
	Underlay      string   `json:"underlay"`
	Pending       []string `json:"pending"`
	Warnings      []string `json:"warnings"`
	Disagree      []string `json:"disagree"` // those of Warnings that are about what nodes do not agree in
	Peers         []Node   `json:"peers"`
	Networks      int      `json:"networks"`
	Attached      int      `json:"attached"` // containers on networks, here
	Repairs       int      `json:"repairs"`  // steps by which this host was put right since the daemon's start
	FastPath      FastPath `json:"fast_path"`
	PID           int      `json:"pid"`
	Goroutines    int      `json:"goroutines"` // of the daemon, for who looks for leaks
}

// FastPath is what passes Open vSwitch by.
type FastPath struct {
	On    bool      `json:"on"`
	Why   string    `json:"why"`
	Ports []Traffic `json:"ports"`
}

// Traffic counts the packets that came in by a device of the fast path.
type Traffic struct {
	Device    string `json:"device"`
	Network   string `json:"network"`   // empty: of several, at the gateway
	Container string `json:"container"` // empty: they come from other hosts, or from this one
	Fast      uint64 `json:"fast"`      // sent straight on
	Slow      uint64 `json:"slow"`      // to Open vSwitch
	Refused   uint64 `json:"refused"`   // to Open vSwitch, which drops them: sent in another's name
	Broken    uint64 `json:"broken"`    // to Open vSwitch: no whole header
	Returned  uint64 `json:"returned"`  // from Open vSwitch
	Bytes     uint64 `json:"bytes"`     // of the fast ones
}

// Label is a key and a value that a person put on a network.
type Label struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// Network is a network as every node sees it.
type Network struct {
	Name      string `json:"name"`
	ID        string `json:"id"`
	Subnet    string `json:"subnet"`
	Gateway   string `json:"gateway"` // empty: none
	VNI       uint32 `json:"vni"`
	MTU       uint32 `json:"mtu"` // bytes
	Internal  bool   `json:"internal"`
	Endpoints int    `json:"endpoints"`
	Removed   bool   `json:"removed"` // it lives only while it has members

	// Of inspect only.
	Created     time.Time    `json:"created,omitzero"`
	Members     []string     `json:"members,omitempty"` // names of nodes with a container here
	Labels      []Label      `json:"labels,omitempty"`
	Reserved    []string     `json:"reserved,omitempty"` // addresses or FROM-TO
	Attachments []Attachment `json:"attachments,omitempty"`
}

// Attachment is a container on a network.
type Attachment struct {
	Endpoint  string   `json:"endpoint"`
	Container string   `json:"container"`
	Network   string   `json:"network"`
	NetworkID string   `json:"network_id"`
	Address   string   `json:"address"` // with the prefix length of the network
	MAC       string   `json:"mac"`
	IfName    string   `json:"ifname"` // empty on other nodes when it was not asked for by name
	Gateway   string   `json:"gateway"`
	Node      string   `json:"node"`
	NodeID    string   `json:"node_id"`
	State     string   `json:"state"` // ready, pending or down
	Names     []string `json:"names"`
	Published []string `json:"published,omitempty"` // HOSTPORT:PORT/PROTOCOL, of its node
}

// Attached is the answer to attach.
type Attached struct {
	Attachment
	// Waiting names the nodes that have not said within the wait that they reach the container.
	Waiting []string `json:"waiting,omitempty"`
	// Error says so in one line; set by the command line.
	Error string `json:"error,omitempty"`
}

// Detached is the answer to detach: what was taken off, empty when there was nothing to do.
type Detached struct {
	Detached []Attachment `json:"detached"`
}

// Range is FROM to TO, both included.
type Range struct {
	From string `json:"from"`
	To   string `json:"to"`
}

// CreateRequest asks for a network.
type CreateRequest struct {
	Name      string  `json:"name"`
	Subnet    string  `json:"subnet,omitempty"`  // empty: one is chosen
	Gateway   string  `json:"gateway,omitempty"` // empty: the first address; none: no gateway
	Internal  bool    `json:"internal,omitempty"`
	BlockBits uint8   `json:"block_bits,omitempty"`
	MTU       uint32  `json:"mtu,omitempty"`
	Reserve   []Range `json:"reserve,omitempty"`
	Labels    []Label `json:"labels,omitempty"`
	Force     bool    `json:"force,omitempty"`
}

// Ref names a container: by name, or by an open network namespace that travels beside the request
// and these words about it.
type Ref struct {
	Name    string `json:"name"`
	PID     uint32 `json:"pid,omitempty"`
	Started uint64 `json:"started,omitempty"` // clock ticks since boot, field 22 of /proc/PID/stat
	Path    string `json:"path,omitempty"`
}

// AttachRequest asks for a container on a network.
type AttachRequest struct {
	Container      Ref      `json:"container"`
	Network        string   `json:"network"`
	IP             string   `json:"ip,omitempty"`
	MAC            string   `json:"mac,omitempty"`
	IfName         string   `json:"ifname,omitempty"`
	Names          []string `json:"names,omitempty"`
	NoDefaultRoute bool     `json:"no_default_route,omitempty"`
	Wait           float64  `json:"wait"` // seconds, for the peers
}

// DetachRequest asks for a container off a network, or off all when none is named.
type DetachRequest struct {
	Container Ref    `json:"container"`
	Network   string `json:"network,omitempty"`
}

// Block is a range of addresses of a network.
type Block struct {
	Prefix  string `json:"prefix"`
	Owner   string `json:"owner"`
	OwnerID string `json:"owner_id"`
	State   string `json:"state"` // settled, claimed or quarantined
	Used    uint64 `json:"used"`
	Free    uint64 `json:"free"`

	// Of a quarantined one only.
	Heir    string   `json:"heir,omitempty"`
	Left    float64  `json:"left,omitempty"`      // seconds that it rests yet
	WaitsOn []string `json:"waits_for,omitempty"` // names of nodes that have to hear of the loss first
}

// Address is an address that a container has.
type Address struct {
	Address   string    `json:"address"`
	Container string    `json:"container"`
	Node      string    `json:"node"`
	Since     time.Time `json:"since"`
	State     string    `json:"state"` // shown, or quarantined: another container shows the address
}

// Space is how the addresses of a network are divided.
type Space struct {
	Network   string    `json:"network"`
	NetworkID string    `json:"network_id"`
	Subnet    string    `json:"subnet"`
	Size      uint64    `json:"size"` // addresses for containers
	Used      uint64    `json:"used"`
	Free      uint64    `json:"free"`
	Blocks    []Block   `json:"blocks"`
	Addresses []Address `json:"addresses"`
}

// Conflict is something that two sides both claimed.
type Conflict struct {
	Kind      string `json:"kind"` // name, vni or address
	What      string `json:"what"` // the name, VNI or address
	Network   string `json:"network"`
	NetworkID string `json:"network_id"`
	Kept      string `json:"kept"` // who shows it; empty: nobody
	Lost      string `json:"lost"` // who does not, and under what it goes on
}

// Removed is the answer to rmpeer.
type Removed struct {
	Node   string `json:"node"`
	NodeID string `json:"node_id"`
	Again  bool   `json:"again"` // it was given up before
}

// Version is the daemon's.
type Version struct {
	Version string `json:"version"`
}

// Setting is one thing that the daemon was told, or found out.
type Setting struct {
	Key   string `json:"key"` // a long flag of up
	Value string `json:"value"`
	From  string `json:"from"` // flag --F, environment V, file PATH, found or default
}

// Stopping is the answer to stop: where to see that the daemon has ended.
type Stopping struct {
	PID      int    `json:"pid"`
	RunDir   string `json:"run_dir"`
	StateDir string `json:"state_dir"`
	OVSDB    string `json:"ovsdb,omitempty"` // as it was given to up
}
