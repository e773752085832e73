package ovs

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/ovn-org/libovsdb/cache"
	"github.com/ovn-org/libovsdb/client"
	"github.com/ovn-org/libovsdb/model"
	"github.com/ovn-org/libovsdb/ovsdb"
)

// The tables and columns of ovs-vswitchd.conf.db(5) that we read. Models are read-only once they are
// in the cache.
type (
	rootRow struct {
		UUID        string            `ovsdb:"_uuid"`
		Bridges     []string          `ovsdb:"bridges"`
		OtherConfig map[string]string `ovsdb:"other_config"`
		NextCfg     int               `ovsdb:"next_cfg"`
		CurCfg      int               `ovsdb:"cur_cfg"`
	}
	bridgeRow struct {
		UUID         string            `ovsdb:"_uuid"`
		Name         string            `ovsdb:"name"`
		DatapathType string            `ovsdb:"datapath_type"`
		FailMode     *string           `ovsdb:"fail_mode"`
		Protocols    []string          `ovsdb:"protocols"`
		STP          bool              `ovsdb:"stp_enable"`
		RSTP         bool              `ovsdb:"rstp_enable"`
		Snooping     bool              `ovsdb:"mcast_snooping_enable"`
		OtherConfig  map[string]string `ovsdb:"other_config"`
		ExternalIDs  map[string]string `ovsdb:"external_ids"`
		Ports        []string          `ovsdb:"ports"`
	}
	portRow struct {
		UUID       string   `ovsdb:"_uuid"`
		Name       string   `ovsdb:"name"`
		Interfaces []string `ovsdb:"interfaces"`
	}
	interfaceRow struct {
		UUID        string            `ovsdb:"_uuid"`
		Name        string            `ovsdb:"name"`
		Type        string            `ovsdb:"type"`
		Options     map[string]string `ovsdb:"options"`
		ExternalIDs map[string]string `ovsdb:"external_ids"`
		OFPort      *int              `ovsdb:"ofport"`
		Request     *int              `ovsdb:"ofport_request"`
		MTU         *int              `ovsdb:"mtu_request"`
		Error       *string           `ovsdb:"error"`
	}
)

const (
	tableRoot      = "Open_vSwitch"
	tableBridge    = "Bridge"
	tablePort      = "Port"
	tableInterface = "Interface"
)

// dialMax bounds connecting to a database and reading it: a local socket answers in milliseconds.
const dialMax = 5 * time.Second

// errLost says that the connection to the database ended by itself.
var errLost = errors.New("connection to ovsdb-server lost")

// database is one connection to an ovsdb-server and a mirror of the tables above. It never
// reconnects: whoever needs it again dials again, and so starts from what is.
type database struct {
	client client.Client
	ended  chan struct{} // closed by end when the connection has ended
	once   sync.Once

	mu   sync.Mutex
	news chan struct{} // closed and replaced at each change of the mirror
}

// dialDB connects to an OVSDB address such as unix:/run/openvswitch/db.sock and reads the tables.
func dialDB(ctx context.Context, address string) (*database, error) {
	ctx, cancel := context.WithTimeout(ctx, dialMax)
	defer cancel()
	d := &database{ended: make(chan struct{}), news: make(chan struct{})}
	models, err := model.NewClientDBModel(tableRoot, map[string]model.Model{
		tableRoot: &rootRow{}, tableBridge: &bridgeRow{}, tablePort: &portRow{}, tableInterface: &interfaceRow{},
	})
	if err != nil {
		return nil, fmt.Errorf("describe the Open vSwitch database: %w", err)
	}
	silent := logr.Discard() // its errors come back from the calls
	c, err := client.NewOVSDBClient(models, client.WithEndpoint(address), client.WithLogger(&silent))
	if err != nil {
		return nil, fmt.Errorf("OVSDB address %q: %w", address, err)
	}
	d.client = c
	go func() {
		select {
		case <-c.DisconnectNotify():
			d.end()
		case <-d.ended:
		}
	}()
	if err := c.Connect(ctx); err != nil {
		d.end()
		return nil, fmt.Errorf("connect to ovsdb-server at %s: %w", address, err)
	}
	if err := d.monitor(ctx); err != nil {
		d.close()
		return nil, fmt.Errorf("read the database at %s: %w", address, err)
	}
	return d, nil
}

// monitor fills the mirror and keeps it. Only the columns of our models are asked for: the others
// hold counters that change all the time.
func (d *database) monitor(ctx context.Context) error {
	changed := func() {
		d.mu.Lock()
		close(d.news)
		d.news = make(chan struct{})
		d.mu.Unlock()
	}
	d.client.Cache().AddEventHandler(&cache.EventHandlerFuncs{
		AddFunc:    func(string, model.Model) { changed() },
		UpdateFunc: func(string, model.Model, model.Model) { changed() },
		DeleteFunc: func(string, model.Model) { changed() },
	})
	r, b, p, i := &rootRow{}, &bridgeRow{}, &portRow{}, &interfaceRow{}
	_, err := d.client.Monitor(ctx, d.client.NewMonitor(
		client.WithTable(r, &r.Bridges, &r.OtherConfig, &r.NextCfg, &r.CurCfg),
		client.WithTable(b, &b.Name, &b.DatapathType, &b.FailMode, &b.Protocols, &b.STP, &b.RSTP, &b.Snooping,
			&b.OtherConfig, &b.ExternalIDs, &b.Ports),
		client.WithTable(p, &p.Name, &p.Interfaces),
		client.WithTable(i, &i.Name, &i.Type, &i.Options, &i.ExternalIDs, &i.OFPort, &i.Request, &i.MTU, &i.Error),
	))
	return err
}

// closeMax bounds the wait for the end of a connection that was closed.
const closeMax = time.Second

// close ends the connection and returns when all it started has ended, as far as the client tells: it
// does so only if somebody listens at that very moment, and on a busy machine the one who is to may
// not have come that far.
func (d *database) close() {
	d.client.Close()
	select {
	case <-d.ended:
	case <-time.After(closeMax):
		d.end()
	}
}

// end notes that the connection has ended. Twice is the same as once.
func (d *database) end() { d.once.Do(func() { close(d.ended) }) }

// lost notices an end that the client did not tell of.
func (d *database) lost() bool {
	if !d.client.Connected() {
		d.end()
	}
	return ended(d.ended)
}

// changed returns a channel that is closed at the next change of the mirror.
func (d *database) changed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.news
}

// transact carries out the operations, all or none. When it returns, the mirror has them.
func (d *database) transact(ctx context.Context, ops []ovsdb.Operation) error {
	results, err := d.client.Transact(ctx, ops...)
	if err != nil {
		return err
	}
	if _, err := ovsdb.CheckOperationResults(results, ops); err != nil {
		return fmt.Errorf("ovsdb-server refuses the transaction: %w", err)
	}
	return nil
}

// settle waits until ovs-vswitchd has taken up all that is in the database now, or until stop is
// closed.
func (d *database) settle(ctx context.Context, stop <-chan struct{}) error {
	want := -1
	for {
		changed := d.changed() // before the look, so that nothing is missed
		root := d.root()
		if root == nil {
			return errors.Join(errLost, errors.New("no Open_vSwitch row"))
		}
		if want < 0 {
			want = root.NextCfg
		}
		if root.CurCfg >= want {
			return nil
		}
		select {
		case <-changed:
		case <-stop:
			return errors.New("ovs-vswitchd ended meanwhile")
		case <-d.ended:
			return errLost
		case <-ctx.Done():
			return fmt.Errorf("ovs-vswitchd does not take up changes; is it running?: %w", ctx.Err())
		}
	}
}

// root returns the one row of Open_vSwitch, or nil.
func (d *database) root() *rootRow {
	for _, r := range rows[rootRow](d, tableRoot) {
		return r
	}
	return nil
}

// addRoot inserts the one row that an empty database lacks.
func (d *database) addRoot(ctx context.Context) error {
	if d.root() != nil {
		return nil
	}
	return d.transact(ctx, []ovsdb.Operation{{Op: ovsdb.OperationInsert, Table: tableRoot, Row: ovsdb.Row{"next_cfg": 0}}})
}

// rows returns a table of the mirror by UUID. The rows are read-only.
func rows[T any](d *database, table string) map[string]*T {
	c := d.client.Cache()
	if c == nil {
		return nil // disconnected
	}
	all := c.Table(table).RowsShallow()
	typed := make(map[string]*T, len(all))
	for uuid, row := range all {
		typed[uuid] = row.(*T)
	}
	return typed
}
