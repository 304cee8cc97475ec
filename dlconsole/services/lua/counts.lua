-- Where all tasks are, at one moment: in one script, so that the sum can be checked.
--
-- KEYS[1]  LIST    queue
-- KEYS[2]  LIST    error list
-- KEYS[3]  STRING  stored
-- KEYS[4]  STRING  failed
-- KEYS[5]  STRING  fed
-- KEYS[6]  ZSET    delayed
-- KEYS[7]  SET     sessions
-- ARGV     prefix of the in-flight hashes (same hash tag as the keys above)
-- Returns  {now_ms, queued, in_flight, delayed, stored, failed, fed, error_list}
--
-- Safe to repeat: it only reads.

local function number_at(key) return tonumber(redis.call('GET', key) or '0') or 0 end

local in_flight = 0
for _, sid in ipairs(redis.call('SMEMBERS', KEYS[7])) do
  local held = redis.pcall('HLEN', ARGV[1] .. sid)  -- an error where somebody put another type
  if type(held) == 'number' and held > 0 then in_flight = in_flight + held - redis.call('HEXISTS', ARGV[1] .. sid, '_last') end
end
return {
  clock(),
  redis.call('LLEN', KEYS[1]),
  in_flight,
  redis.call('ZCARD', KEYS[6]),
  number_at(KEYS[3]),
  number_at(KEYS[4]),
  number_at(KEYS[5]),
  redis.call('LLEN', KEYS[2]),
}
