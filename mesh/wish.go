package mesh

import (
	"encoding/json"
	"fmt"
	"net/netip"

	"meshnet/state"
)

// wishRecord is an attachment in the log. Fields are only ever added.
type wishRecord struct {
	ID             uint64       `json:"id,string"`
	Network        uint64       `json:"network,string"`
	Container      string       `json:"container"`
	Source         sourceRecord `json:"source"`
	Addr           netip.Addr   `json:"addr"`
	MAC            string       `json:"mac,omitempty"`
	IfName         string       `json:"ifname,omitempty"`
	Names          []string     `json:"names,omitempty"`
	NoDefaultRoute bool         `json:"no_default_route,omitempty"`
	Given          string       `json:"given,omitempty"`
	Publish        []portRecord `json:"publish,omitempty"`
}

type portRecord struct {
	Proto    uint8  `json:"proto,omitempty"`
	HostPort uint16 `json:"host_port"`
	Port     uint16 `json:"port"`
}

type sourceRecord struct {
	Kind    uint8  `json:"kind"`
	Docker  string `json:"docker,omitempty"`
	Path    string `json:"path,omitempty"`
	PID     uint32 `json:"pid,omitempty"`
	Started uint64 `json:"started,omitempty"`
	Inode   uint64 `json:"inode,omitempty"`
}

func encodeWish(w state.Attach) []byte {
	r := wishRecord{
		ID: uint64(w.ID), Network: uint64(w.Network), Container: w.Container,
		Source: sourceRecord{
			Kind: uint8(w.Source.Kind), Docker: w.Source.Docker, Path: w.Source.Path,
			PID: w.Source.PID, Started: w.Source.Started, Inode: w.Source.Inode,
		},
		Addr: w.Addr, IfName: w.IfName, Names: w.Names, NoDefaultRoute: w.NoDefaultRoute,
		Given: w.Given,
	}
	if w.MAC != (state.MAC{}) {
		r.MAC = w.MAC.String()
	}
	for _, p := range w.Publish {
		r.Publish = append(r.Publish, portRecord{uint8(p.Proto), p.HostPort, p.Port})
	}
	b, err := json.Marshal(r)
	if err != nil {
		panic("encode wish: " + err.Error()) // no field of it can fail
	}
	return b
}

func decodeWish(b []byte) (state.Attach, error) {
	var r wishRecord
	if err := json.Unmarshal(b, &r); err != nil {
		return state.Attach{}, fmt.Errorf("read wish: %w", err)
	}
	w := state.Attach{
		ID: state.EndpointID(r.ID), Network: state.NetworkID(r.Network), Container: r.Container,
		Source: state.Source{
			Kind: state.SourceKind(r.Source.Kind), Docker: r.Source.Docker, Path: r.Source.Path,
			PID: r.Source.PID, Started: r.Source.Started, Inode: r.Source.Inode,
		},
		Addr: r.Addr, IfName: r.IfName, Names: r.Names, NoDefaultRoute: r.NoDefaultRoute,
		Given: r.Given,
	}
	for _, p := range r.Publish {
		w.Publish = append(w.Publish, state.Published{Proto: state.Proto(p.Proto), HostPort: p.HostPort, Port: p.Port})
	}
	if r.MAC != "" {
		var err error
		if w.MAC, err = state.ParseMAC(r.MAC); err != nil {
			return state.Attach{}, fmt.Errorf("read wish: %w", err)
		}
	}
	return w, nil
}
