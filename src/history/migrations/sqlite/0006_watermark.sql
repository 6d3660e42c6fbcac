-- Every occurrence of the job up to here was run or skipped.
ALTER TABLE jobs RENAME COLUMN dealt_with TO watermark;
