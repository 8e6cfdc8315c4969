-- far-or-near: Do the far patches look worse than the near ones?
-- One row per role. If the far patches are not less sharp, the split into LR and HR did not work.
-- Sharpness and texture are measured at the patch's own size, 56 or 224 pixels.
SELECT role, count(*) AS patches, count(DISTINCT image_id) AS photographs,
    round(avg(distance), 3) AS distance, round(avg(texture), 4) AS texture,
    round(median(sharpness), 1) AS sharpness, round(avg(contrast), 3) AS contrast
FROM patches GROUP BY role ORDER BY role;

-- sharp-far: Far patches that look sharp
-- LR patches sharper than half of the HR patches: clear air, a sharp lens, or a wrong distance map.
-- They teach the network that good pictures are bad.
SELECT patch_id, image_path, x, y, round(distance, 3) AS distance, round(sharpness, 1) AS sharpness
FROM patches
WHERE role = 'lr'
    AND sharpness > (SELECT quantile_cont(sharpness, 0.5) FROM patches WHERE role = 'hr')
ORDER BY patches.sharpness DESC, patch_id LIMIT 100;

-- blurred-near: Near patches that are blurred
-- HR patches less sharp than half of the LR patches: out of focus, or plain areas. They lower the
-- quality that the network learns to produce.
SELECT patch_id, image_path, x, y, round(distance, 3) AS distance, round(sharpness, 1) AS sharpness
FROM patches
WHERE role = 'hr'
    AND sharpness < (SELECT quantile_cont(sharpness, 0.5) FROM patches WHERE role = 'lr')
ORDER BY patches.sharpness, patch_id LIMIT 100;

-- equal-content: Are far patches less sharp than near ones of the same content?
-- So that sky against bark does not decide: each far patch is compared with the median of the near
-- patches that share three of its best eight words, and of those of its colour (at most 8 apart in
-- 100 luma, a*, b*). Sharpness of both is that at 56 x 56 pixels. By photograph: the mean of the
-- logarithm of far / near. Of a manifest with more, a sample of 1,000 patches of each role.
WITH chosen AS (
    SELECT patch_id, image_id, role, words[1:8] AS words, luma, colour_a, colour_b, sharpness_56
    FROM patches WHERE sharpness_56 IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY role ORDER BY md5(patch_id)) <= 1000
), spoken AS (
    SELECT patch_id, role, unnest(words) AS word FROM chosen
), far AS (SELECT * FROM chosen WHERE role = 'lr'), near AS (SELECT * FROM chosen WHERE role = 'hr'
), alike AS (
    SELECT 'words' AS content, lr.patch_id, hr.patch_id AS other
    FROM spoken AS lr JOIN spoken AS hr ON lr.word = hr.word AND lr.role = 'lr' AND hr.role = 'hr'
    GROUP BY ALL HAVING count(*) >= 3
    UNION ALL
    SELECT 'colour', far.patch_id, near.patch_id FROM far JOIN near
    ON (100 * (far.luma - near.luma)) ** 2 + (far.colour_a - near.colour_a) ** 2
        + (far.colour_b - near.colour_b) ** 2 <= 8 ** 2
), compared AS (
    SELECT content, far.image_id,
        ln((any_value(far.sharpness_56) + 1) / (median(near.sharpness_56) + 1)) AS ratio
    FROM alike JOIN far USING (patch_id) JOIN near ON near.patch_id = other
    GROUP BY content, far.image_id, far.patch_id
), by_photograph AS (
    SELECT content, image_id, count(*) AS patches, avg(ratio) AS ratio FROM compared GROUP BY ALL
)
SELECT content, count(*) AS photographs, count(*) FILTER (ratio < 0) AS less_sharp,
    round(100.0 * less_sharp / photographs, 1) AS per_cent, sum(patches)::BIGINT AS far_patches,
    round(exp(median(ratio)), 3) AS far_by_near
FROM by_photograph GROUP BY content ORDER BY content DESC;

-- plateaus: Far patches of a plateau
-- Far patches that are as far as another one of their photograph, at the precision of distance maps,
-- or at the largest distance there is. Many: sky, and chance chooses among equals.
WITH far AS (
    SELECT image_id, distance, count(*) OVER (
        PARTITION BY image_id, round(distance * 65535)
    ) AS equal
    FROM patches WHERE role = 'lr' AND distance IS NOT NULL
)
SELECT count(*) FILTER (equal > 1 OR distance * 65535 >= 65534.5) AS plateau, count(*) AS far,
    round(100.0 * plateau / nullif(count(*), 0), 1) AS per_cent,
    count(DISTINCT image_id) FILTER (equal > 1 OR distance * 65535 >= 65534.5) AS photographs
FROM far;

-- no-content: Patches without content
-- Texture and contrast below what a JPEG of an even or slightly graded area has, with the noise of a
-- sensor: docs/curation.md. --far-texture leaves out such far patches, --min-texture both.
SELECT role, count(*) FILTER (
        texture < 0.005 AND contrast < CASE role WHEN 'lr' THEN 0.015 ELSE 0.055 END
    ) AS blank, count(*) AS total, round(100.0 * blank / total, 1) AS per_cent
FROM patches GROUP BY role ORDER BY role;

-- near-copies: Patches that look like another of their photograph and role
-- Copies differ from a better patch in at most 4 of the 64 bits of their perceptual hashes.
-- Overlapping ones share 40 % of their area or more with one. --min-separation sets them apart.
WITH grouped AS (
    SELECT role, list_sort(list({
        'rank': rank, 'patch_id': patch_id, 'x': x::DOUBLE, 'y': y::DOUBLE, 'size': size::DOUBLE,
        'hash': try_cast('0x' || phash AS UBIGINT)
    })) AS p
    FROM patches GROUP BY image_id, role
), counted AS (
    SELECT role, len(p) AS n, len(list_filter(range(2, n + 1), lambda i: list_bool_or(
        list_transform(p[: i - 1], lambda better: bit_count(xor(p[i].hash, better.hash)) <= 4)
    ))) AS alike, len(list_filter(range(2, n + 1), lambda i: 0.4 <= list_max(
        list_transform(p[: i - 1], lambda better: greatest(p[i].size - abs(p[i].x - better.x), 0)
            * greatest(p[i].size - abs(p[i].y - better.y), 0) / p[i].size ** 2)
    ))) AS shared
    FROM grouped
)
SELECT role, sum(alike)::BIGINT AS copies, sum(shared)::BIGINT AS overlapping,
    sum(n)::BIGINT AS total, round(100.0 * sum(alike) / sum(n), 1) AS per_cent
FROM counted GROUP BY role ORDER BY role;

-- telling-words: Words that separate the roles
-- Log-odds of a word in far against near captions: above 0 far, below 0 near. A half is added to each
-- count, so that the value is finite. Only words of at least 5 patches.
WITH sizes AS (
    SELECT count(*) FILTER (role = 'lr') AS far, count(*) FILTER (role = 'hr') AS near FROM patches
), counted AS (
    SELECT word, count(*) FILTER (role = 'lr') AS far, count(*) FILTER (role = 'hr') AS near
    FROM (SELECT role, unnest(words) AS word FROM patches) GROUP BY word
)
SELECT word, counted.far, counted.near,
    round(ln((counted.far + 0.5) / (sizes.far - counted.far + 0.5))
        - ln((counted.near + 0.5) / (sizes.near - counted.near + 0.5)), 2) AS log_odds
FROM counted, sizes
WHERE counted.far + counted.near >= 5
ORDER BY abs(log_odds) DESC, word LIMIT 40;

-- word-balance: Balance by word
-- The number of patches and photographs of each word. A word with many patches of few photographs
-- comes from a series. Each photograph is a bit of 64, so that its words need not be remembered.
WITH photographs AS (
    SELECT image_id, row_number() OVER (ORDER BY min(image_path), image_id) AS number
    FROM patches GROUP BY image_id
), blocks AS (
    SELECT word, number // 64 AS block, count(*) AS n, sum(score) AS total, count(score) AS scored,
        bit_or(1::UBIGINT << (number % 64)) AS seen
    FROM (
        SELECT number, unnest(words) AS word, unnest(word_scores) AS score
        FROM patches JOIN photographs USING (image_id)
    ) GROUP BY word, block
)
SELECT word, sum(n)::BIGINT AS patches, sum(bit_count(seen))::BIGINT AS photographs,
    round(sum(n) / (SELECT count(*) FROM patches), 4) AS share,
    round(sum(total) / sum(scored), 3) AS score
FROM blocks GROUP BY word ORDER BY patches DESC, word LIMIT 50;

-- gave-nothing: Photographs that gave nothing
-- Every file found that has no patch in the manifest, with the reason.
SELECT status, path, width, height, error FROM images
WHERE n_lr + n_hr = 0 ORDER BY status, path;

-- reasons: Photographs by status
-- The number of photographs of each status, including those that were used.
SELECT status, count(*) AS photographs, sum(n_lr)::BIGINT AS lr, sum(n_hr)::BIGINT AS hr
FROM images GROUP BY status ORDER BY photographs DESC, status;

-- same-photographs: Near-duplicate photographs
-- Photographs that look like another, larger one: resized, recompressed, or from the same burst.
SELECT this.path, other.path AS looks_like, duplicates.distance, this.width, this.height
FROM duplicates
JOIN images AS this ON this.image_id = duplicates.id AND this.status <> 'duplicate'
JOIN images AS other ON other.image_id = duplicates.kept AND other.status <> 'duplicate'
WHERE kind = 'photograph' ORDER BY looks_like, duplicates.distance, this.path;

-- same-patches: Near-duplicate patches
-- Patches that look like another patch of their role. Two of the same photograph show a repeating
-- pattern.
SELECT kind AS role, this.image_path, other.image_path AS looks_like, duplicates.distance, id, kept
FROM duplicates
JOIN patches AS this ON this.patch_id = duplicates.id
JOIN patches AS other ON other.patch_id = duplicates.kept
ORDER BY duplicates.distance, looks_like, id LIMIT 100;

-- without-duplicates: All patches but near-duplicates
-- With --save: a manifest without near-duplicate patches and photographs.
SELECT patch_id FROM patches
WHERE patch_id NOT IN (SELECT id FROM duplicates) AND image_id NOT IN (SELECT id FROM duplicates);

-- exposure: Over- and underexposed patches
-- Patches of which a tenth or more is nearly white or nearly black, and therefore without detail.
SELECT patch_id, role, image_path, round(luma, 3) AS luma, round(shadows, 3) AS shadows,
    round(highlights, 3) AS highlights
FROM patches WHERE shadows >= 0.1 OR highlights >= 0.1
ORDER BY greatest(patches.shadows, patches.highlights) DESC, patch_id LIMIT 100;

-- plain: Plain patches
-- Sky, walls and water, which the paper's background filter removes (table 4): --min-texture.
SELECT role, count(*) FILTER (texture < 0.005) AS plain, count(*) AS total,
    round(100.0 * plain / total, 1) AS per_cent
FROM patches GROUP BY role ORDER BY role;

-- splits: Balance of the split
-- Photographs and patches of each split; about one photograph in twenty is for validation.
SELECT split, count(DISTINCT image_id) AS photographs, count(*) FILTER (role = 'lr') AS lr,
    count(*) FILTER (role = 'hr') AS hr, round(avg(distance), 3) AS distance,
    round(avg(texture), 4) AS texture
FROM patches GROUP BY split ORDER BY split;

-- leaks: Photographs for validation that look like one for training
-- The split depends on a photograph's bytes; a copy in another size may be in the other split.
SELECT this.path, this.split, other.path AS looks_like, other.split AS other_split
FROM duplicates
JOIN images AS this ON this.image_id = duplicates.id AND this.status <> 'duplicate'
JOIN images AS other ON other.image_id = duplicates.kept AND other.status <> 'duplicate'
WHERE kind = 'photograph' AND this.split <> other.split ORDER BY this.path;

-- training: The patches for training
-- With --save. Use 'val' for the patches for validation.
SELECT patch_id FROM patches WHERE split = 'train';

-- lopsided: Photographs with few patches of a role
-- Training pairs far and near patches of a photograph. Where one role has few patches, these few are
-- repeated.
SELECT path, width, height, n_lr, n_hr FROM images
WHERE status = 'ok' AND least(n_lr, n_hr) < greatest(n_lr, n_hr)
ORDER BY least(n_lr, n_hr), path LIMIT 100;

-- flat-photographs: Photographs with the least depth
-- The difference in distance between far and near patches, and how much sharper the near ones are.
-- Pairs of the first photographs do not differ in what the method uses.
SELECT image_path, count(*) AS pairs, round(avg(lr_distance - hr_distance), 3) AS apart,
    round(avg(hr_sharpness) / nullif(avg(lr_sharpness), 0), 2) AS sharper
FROM pairs GROUP BY image_path
ORDER BY avg(lr_distance - hr_distance), image_path LIMIT 100;

-- distances: Distance and texture by role
-- Ten ranges of distance, nearest first: the number of patches of each role and their texture.
SELECT least(floor(distance * 10), 9) / 10 AS from_distance,
    count(*) FILTER (role = 'hr') AS near, count(*) FILTER (role = 'lr') AS far,
    round(avg(texture), 4) AS texture
FROM patches GROUP BY 1 ORDER BY 1;
