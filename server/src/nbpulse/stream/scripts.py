"""What is done on the stream's server itself, in Lua: one step that nobody can part, one answer for many streams."""

from typing import Final

# One question for all streams instead of some for each: the work is the server's, in C, and the answer a few numbers.
MEASURE: Final = b"""
local waiting, pending, added = 0, 0, 0
for _, key in ipairs(KEYS) do
    local facts = redis.pcall('XINFO', 'STREAM', key)
    for i = 1, facts.err and 0 or #facts, 2 do
        if facts[i] == 'entries-added' then added = added + facts[i + 1] end
    end
    local groups, mine = redis.pcall('XINFO', 'GROUPS', key), false
    for _, group in ipairs(groups.err and {} or groups) do
        local fact = {}
        for i = 1, #group, 2 do fact[group[i]] = group[i + 1] end
        if fact['name'] == ARGV[1] then
            -- The server does not always know its lag (nil after XDEL): the length bounds it.
            mine = true
            pending = pending + fact['pending']
            waiting = waiting + (fact['lag'] or math.max(0, redis.call('XLEN', key) - fact['pending']))
        end
    end
    if not mine then waiting = waiting + redis.call('XLEN', key) end
end
return {waiting, pending, added}
"""
# Removes what lies before every group's place and before our oldest pending entry, in one step that nobody can part.
TRIM: Final = b"""
local function parse(id) local ms, n = string.match(id, '(%d+)-(%d+)'); return tonumber(ms), tonumber(n) end
local left = {}
for _, key in ipairs(KEYS) do
    local groups, ms, n = redis.pcall('XINFO', 'GROUPS', key), nil, nil
    local function keep(id, step)
        local id_ms, id_n = parse(id)
        if ms == nil or id_ms < ms or (id_ms == ms and id_n + step < n) then ms, n = id_ms, id_n + step end
    end
    for _, group in ipairs(groups.err and {} or groups) do
        local fact = {}
        for i = 1, #group, 2 do fact[group[i]] = group[i + 1] end
        keep(fact['last-delivered-id'], 1)
        local oldest = redis.call('XPENDING', key, fact['name'])[2]
        if oldest then
            keep(oldest, 0)
            left[#left + 1] = key
        end
    end
    if ms ~= nil then redis.call('XTRIM', key, 'MINID', string.format('%.0f-%.0f', ms, n)) end
end
return left
"""
# Each stream's ids come in one argument, with spaces between.
ACK: Final = b"""
for i, key in ipairs(KEYS) do
    for id in string.gmatch(ARGV[i], '%S+') do redis.call('XACK', key, ARGV[#ARGV], id) end
end
return #KEYS
"""
# Only its present owner may count a try; doing so begins its time in hand anew, so that nobody takes it meanwhile.
SUSPECT: Final = b"""
local entry = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1)[1]
if not entry or entry[2] ~= ARGV[2] then return -1 end
redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[3], 'JUSTID')
return redis.call('HINCRBY', KEYS[2], ARGV[3], 1) - 1
"""
