-- What the living sessions last said of their sites, and which sites are parked; only reads.
--
-- KEYS[1]  ZSET    lease   session id -> deadline, ms
-- KEYS[2]  ZSET    parked  host of a URL -> until when nothing is asked of it, ms
-- ARGV     prefix of the sessions' reports (STRINGs; they share the slot of the keys above), the most
--          bytes that a report may have, the longest that a host may be parked in ms
-- Returns  {now_ms, {report, …}, {host, ms that are left, …}}: a report is '' where a session has none,
--          and '?' where what it has is none
--
-- Reports of another type or length are not a session's of ours, and neither are names that are too long.

local MAX_NAME = 255

local wrong = expect(KEYS[1], 'zset') or expect(KEYS[2], 'zset')
if wrong then return wrong end

local now, most, longest = clock(), tonumber(ARGV[2]), tonumber(ARGV[3])
local after = string.format('(%.0f', now)
local reports, parked = {}, {}
for i, sid in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], after, '+inf')) do
  local key = ARGV[1] .. sid
  local readable = not expect(key, 'string') and redis.call('STRLEN', key) <= most
  reports[i] = readable and (redis.call('GET', key) or '') or '?'
end
local found = redis.call('ZRANGEBYSCORE', KEYS[2], after, '+inf', 'WITHSCORES')
for i = 1, #found, 2 do
  if #found[i] <= MAX_NAME then
    parked[#parked + 1] = found[i]
    parked[#parked + 1] = string.format('%.0f', math.min(tonumber(found[i + 1]) - now, longest))
  end
end
return {now, reports, parked}
