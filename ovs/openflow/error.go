package openflow

import (
	"encoding/binary"
	"fmt"
)

// Error is what the switch says when it refuses a request; its header has the XID of that request. It is an error as
// well as a message.
type Error struct {
	Type, Code   uint16
	Experimenter uint32 // who defined Code when Type is experimenter; else 0
	Data         []byte // the start of the refused message, as the switch pleases
}

const errorExperimenter uint16 = 0xffff

// The experimenters that Open vSwitch speaks for.
const (
	experimenterNicira uint32 = 0x00002320
	experimenterONF    uint32 = 0x4f4e4600
)

// Error is the name that Open vSwitch has for it, with the numbers.
func (e Error) Error() string {
	if e.Type == errorExperimenter {
		if name, ok := experimenterErrors[experimenterError{e.Experimenter, e.Code}]; ok {
			return fmt.Sprintf("%s (experimenter %#x, code %d)", name, e.Experimenter, e.Code)
		}
		return fmt.Sprintf("refused with an error unknown here (experimenter %#x, code %d)", e.Experimenter, e.Code)
	}
	if int(e.Type) < len(standardErrors) {
		kind := standardErrors[e.Type]
		if int(e.Code) < len(kind.codes) {
			return fmt.Sprintf("%s_%s (type %d, code %d)", kind.prefix, kind.codes[e.Code], e.Type, e.Code)
		}
	}
	return fmt.Sprintf("refused with an error unknown here (type %d, code %d)", e.Type, e.Code)
}

func appendError(b []byte, e Error) []byte {
	b = binary.BigEndian.AppendUint16(b, e.Type)
	b = binary.BigEndian.AppendUint16(b, e.Code)
	if e.Type == errorExperimenter {
		b = binary.BigEndian.AppendUint32(b, e.Experimenter)
	}
	return append(b, e.Data...)
}

func decodeError(r *reader) Error {
	e := Error{Type: r.u16(), Code: r.u16()}
	if e.Type == errorExperimenter {
		e.Experimenter = r.u32()
	}
	e.Data = r.rest()
	return e
}

// standardErrors names the codes of each type, both being the index (ONF TS-012, section 7.5.4), as Open vSwitch does.
// Types that only answer requests we never make have no codes here.
var standardErrors = [...]struct {
	prefix string
	codes  []string
}{
	0: {"OFPHFC", []string{"INCOMPATIBLE", "EPERM"}},
	1: {"OFPBRC", []string{
		"BAD_VERSION", "BAD_TYPE", "BAD_STAT", "BAD_VENDOR", "BAD_SUBTYPE", "EPERM", "BAD_LEN",
		"BUFFER_EMPTY", "BUFFER_UNKNOWN", "BAD_TABLE_ID", "IS_SECONDARY", "BAD_PORT", "BAD_PACKET",
		"MULTIPART_BUFFER_OVERFLOW",
	}},
	2: {"OFPBAC", []string{
		"BAD_TYPE", "BAD_LEN", "BAD_VENDOR", "BAD_VENDOR_TYPE", "BAD_OUT_PORT", "BAD_ARGUMENT", "EPERM",
		"TOO_MANY", "BAD_QUEUE", "BAD_OUT_GROUP", "MATCH_INCONSISTENT", "UNSUPPORTED_ORDER", "BAD_TAG",
		"BAD_SET_TYPE", "BAD_SET_LEN", "BAD_SET_ARGUMENT",
	}},
	3: {"OFPBIC", []string{
		"UNKNOWN_INST", "UNSUP_INST", "BAD_TABLE_ID", "UNSUP_METADATA", "UNSUP_METADATA_MASK",
		"BAD_EXPERIMENTER", "BAD_EXP_TYPE", "BAD_LEN", "EPERM", "DUP_INST",
	}},
	4: {"OFPBMC", []string{
		"BAD_TYPE", "BAD_LEN", "BAD_TAG", "BAD_DL_ADDR_MASK", "BAD_NW_ADDR_MASK", "BAD_WILDCARDS", "BAD_FIELD",
		"BAD_VALUE", "BAD_MASK", "BAD_PREREQ", "DUP_FIELD", "EPERM",
	}},
	5: {"OFPFMFC", []string{
		"UNKNOWN", "TABLE_FULL", "BAD_TABLE_ID", "OVERLAP", "EPERM", "BAD_TIMEOUT", "BAD_COMMAND", "BAD_FLAGS",
		"CANT_SYNC", "BAD_PRIORITY", "IS_SYNC",
	}},
	17: {"OFPBFC", []string{
		"UNKNOWN", "EPERM", "BAD_ID", "BUNDLE_EXIST", "BUNDLE_CLOSED", "OUT_OF_BUNDLES", "BAD_TYPE", "BAD_FLAGS",
		"MSG_BAD_LEN", "MSG_BAD_XID", "MSG_UNSUP", "MSG_CONFLICT", "MSG_TOO_MANY", "MSG_FAILED", "TIMEOUT",
		"BUNDLE_IN_PROGRESS",
	}},
}

type experimenterError struct {
	experimenter uint32
	code         uint16
}

// experimenterErrors names what Open vSwitch answers to flow modifications and bundles beyond the standard.
var experimenterErrors = map[experimenterError]string{
	{experimenterNicira, 2}:  "NXBRC_NXM_INVALID",
	{experimenterNicira, 3}:  "NXBRC_NXM_BAD_TYPE",
	{experimenterNicira, 4}:  "NXBRC_MUST_BE_ZERO",
	{experimenterNicira, 11}: "NXBAC_MUST_BE_ZERO",
	{experimenterNicira, 12}: "NXFMFC_HARDWARE",
	{experimenterNicira, 13}: "NXFMFC_BAD_TABLE_ID",
	{experimenterNicira, 22}: "OFPBFC_BAD_VERSION",
	{experimenterNicira, 42}: "NXBAC_CT_DATAPATH_SUPPORT",
	{experimenterNicira, 43}: "NXBMC_CT_DATAPATH_SUPPORT",
	{experimenterONF, 4250}:  "OFPBAC_BAD_SET_MASK",
}
