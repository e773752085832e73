package fastpath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/rlimit"

	"meshnet/fastpath/bpf"
)

// program is the loaded program and its maps.
type program struct {
	prog                                           *ebpf.Program
	ports, members, exits, entries, peers, counted *ebpf.Map
	late                                           *ebpf.Map // the program's own notes
}

// maps returns the program's maps by name.
func (p *program) maps() map[string]**ebpf.Map {
	return map[string]**ebpf.Map{
		bpf.FastMapMeshnetPorts: &p.ports, bpf.FastMapMeshnetMembers: &p.members, bpf.FastMapMeshnetExits: &p.exits,
		bpf.FastMapMeshnetEntries: &p.entries, bpf.FastMapMeshnetPeers: &p.peers, bpf.FastMapMeshnetCounts: &p.counted,
		bpf.FastMapMeshnetLate: &p.late,
	}
}

// contents is what the maps hold, the counters and the program's own notes left out.
type contents struct {
	ports   map[uint32]bpf.FastPort
	members map[bpf.FastMember]bpf.FastWay
	exits   map[uint32]bpf.FastExit
	entries map[bpf.FastInward]bpf.FastEntry
	peers   map[uint32]bpf.FastPeer // by address, without the program's own notes
}

func empty() contents {
	return contents{
		map[uint32]bpf.FastPort{}, map[bpf.FastMember]bpf.FastWay{}, map[uint32]bpf.FastExit{}, map[bpf.FastInward]bpf.FastEntry{},
		map[uint32]bpf.FastPeer{},
	}
}

func (c contents) equal(o contents) bool {
	return maps.Equal(c.ports, o.ports) && maps.Equal(c.members, o.members) && maps.Equal(c.exits, o.exits) && maps.Equal(c.entries, o.entries) &&
		maps.Equal(c.peers, o.peers)
}

// load loads the program with empty maps. peer: with bpf_redirect_peer. room is how many members there
// is room for; 0: as many as the program says.
func load(peer bool, room uint32) (*program, error) {
	if err := rlimit.RemoveMemlock(); err != nil { // kernels before 5.11 count maps as locked memory
		return nil, fmt.Errorf("lift the limit of locked memory: %w", err)
	}
	spec, err := bpf.LoadFast()
	if err != nil {
		return nil, fmt.Errorf("read the program: %w", err)
	}
	return loadSpec(spec, peer, room)
}

func loadSpec(spec *ebpf.CollectionSpec, peer bool, room uint32) (*program, error) {
	if room != 0 {
		spec.Maps[bpf.FastMapMeshnetMembers].MaxEntries = room
	}
	flag := uint8(0)
	if peer {
		flag = 1
	}
	if err := spec.Variables[bpf.FastVarPEER].Set(flag); err != nil {
		return nil, fmt.Errorf("set up the program: %w", err)
	}
	if !since(6, 3) {
		if err := spec.Variables[bpf.FastVarROUTE].Set(uint32(0)); err != nil {
			return nil, fmt.Errorf("set up the program: %w", err)
		}
	}
	var o bpf.FastObjects
	if err := spec.LoadAndAssign(&o, nil); err != nil {
		return nil, fmt.Errorf("load the program: %w", err)
	}
	return &program{
		o.MeshnetFast, o.MeshnetPorts, o.MeshnetMembers, o.MeshnetExits, o.MeshnetEntries, o.MeshnetPeers, o.MeshnetCounts, o.MeshnetLate,
	}, nil
}

// canPeer reports whether the kernel has bpf_redirect_peer, which spares a container's frames a round
// through the backlog (Linux 5.10).
func canPeer() (bool, error) {
	err := features.HaveProgramHelper(ebpf.SchedCLS, asm.FnRedirectPeer)
	if errors.Is(err, ebpf.ErrNotSupported) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("ask for bpf_redirect_peer: %w", err)
	}
	return true, nil
}

// close lets go of the program and its maps, which live on while a filter holds them.
func (p *program) close() {
	p.prog.Close()
	for _, m := range p.maps() {
		(*m).Close()
	}
}

// id returns the number that the kernel knows the program by.
func (p *program) id() (ebpf.ProgramID, error) {
	info, err := p.prog.Info()
	if err != nil {
		return 0, fmt.Errorf("ask for the program's number: %w", err)
	}
	id, _ := info.ID()
	return id, nil
}

// read returns what the maps hold.
func (p *program) read() (contents, error) {
	c := empty()
	err := errors.Join(readMap(p.ports, c.ports), readMap(p.members, c.members), readMap(p.exits, c.exits), readMap(p.entries, c.entries),
		readMap(p.peers, c.peers))
	if err != nil {
		return contents{}, fmt.Errorf("read the maps of the fast path: %w", err)
	}
	for peer, p := range c.peers {
		c.peers[peer] = bpf.FastPeer{Ifindex: p.Ifindex}
	}
	return c, nil
}

func readMap[K, V comparable](m *ebpf.Map, into map[K]V) error {
	var k K
	var v V
	it := m.Iterate()
	for it.Next(&k, &v) {
		into[k] = v
	}
	return it.Err()
}

// encode returns the port as the map holds it, with the index of its other device.
func (p Port) encode(other uint32) bpf.FastPort {
	udp := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, p.UDP))
	return bpf.FastPort{Vni: p.VNI, Other: other, Kind: kinds[p.Kind], Ip: bigEndian(p.Addr), Mac: p.MAC, Udp: udp}
}

var kinds = map[Kind]bpf.FastKind{
	Container:     bpf.FastKindCONTAINER,
	Trunk:         bpf.FastKindTRUNK,
	Door:          bpf.FastKindDOOR,
	Underlay:      bpf.FastKindUNDERLAY,
	Tunnel:        bpf.FastKindTUNNEL,
	ContainerTwin: bpf.FastKindTWIN_CONTAINER,
	TrunkTwin:     bpf.FastKindTWIN_TRUNK,
	DoorTwin:      bpf.FastKindTWIN_DOOR,
}

var hows = map[How]bpf.FastHow{Out: bpf.FastHowOUT, Inside: bpf.FastHowLOCAL, Host: bpf.FastHowHOST, Keyed: bpf.FastHowKEYED}

// bigEndian returns an IPv4 address as a number whose bytes in memory are those on the wire; zero for
// none.
func bigEndian(a netip.Addr) uint32 {
	if !a.Is4() {
		return 0
	}
	b := a.As4()
	return binary.NativeEndian.Uint32(b[:])
}

func (m Member) encode() bpf.FastMember { return bpf.FastMember{Vni: m.VNI, Mac: m.MAC} }

// encode returns the way as the map holds it, by the indexes of devices; false if there is none of its own.
func (w Way) encode(index func(string) uint32) (bpf.FastWay, bool) {
	way := bpf.FastWay{Ifindex: index(w.Device), How: uint32(hows[w.How]), Peer: bigEndian(w.Peer)}
	if w.Trunk != "" {
		way.Trunk = index(w.Trunk)
	}
	return way, way.Ifindex != 0
}

func (x Exit) encode() bpf.FastExit {
	mask := netip.AddrFrom4([4]byte(net.CIDRMask(x.Subnet.Bits(), 32)))
	return bpf.FastExit{Net: bigEndian(x.Subnet.Addr()), Mask: bigEndian(mask), Far: x.Far, Near: x.Near}
}

func (i Inward) encode() bpf.FastInward { return bpf.FastInward{Far: i.Far, Ip: bigEndian(i.Addr)} }

func (e Entry) encode(index uint32) bpf.FastEntry {
	return bpf.FastEntry{Ifindex: index, Except: bigEndian(e.Except), Src: e.Router, Dst: e.MAC}
}

// count returns what came in by the device of an index; zero where nothing is counted.
func (p *program) count(index uint32) (sum bpf.FastCount) {
	var each []bpf.FastCount
	if index == 0 || p.counted.Lookup(index, &each) != nil {
		return sum
	}
	for _, c := range each {
		for why, n := range c.Packets {
			sum.Packets[why] += n
		}
		sum.Bytes += c.Bytes
	}
	return sum
}
