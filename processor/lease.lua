-- A lease in Redis, changed only by who holds it.
-- KEYS[1] the lease; ARGV[1] the holder's token; [2] how long it holds from now on, ms, or "" to give it back

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
if ARGV[2] == '' then
  return redis.call('DEL', KEYS[1])
end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
